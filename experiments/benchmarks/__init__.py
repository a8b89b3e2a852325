"""`experiments.benchmark` against peers: one process each, in turn.

problems.py      what is computed: shapes, parameters, inputs
contestants.py   who computes it; a row each
peers/           how each library computes it
entries.py       one contestant with one problem: the calls that are timed
worker.py        the process of a contestant
referee.py       starts the workers, compares what they give, times in turn
report.py        medians, ratios, targets, tables
picture.py       the same as dots
methods.py       not against peers: every cell by every method of ours

How things grow, in the process of `experiments.benchmark`:

scaling.py          what is measured; exponents
scaling_picture.py  its panels
crew.py             processes that share out a train step
"""
