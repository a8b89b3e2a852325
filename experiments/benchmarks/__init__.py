"""What `experiments.benchmark` measures, and how.

Pieces:

timing.py           turns, medians, ratios; the machine
processes.py        processes that run functions on request
report.py           rows, ratios, targets, tables
plots.py            all plots

Against peers, in processes of their own:

problems.py         what is computed: shapes, parameters, inputs
implementations.py  who computes it; a row each
peers/              how each library computes it
networks.py         from a library's network to the calls that are timed
worker.py           what runs in the process of an implementation
comparison.py       starts these processes, compares values, times in turn

In the process of `experiments.benchmark`:

programs.py         compiled programs of `recurrent.unroll`
training.py         a train step of the language model, also among processes
throughput.py       the training loop and the decoder, work a second
methods.py          every cell by every method of ours
scaling.py          how time, memory and compilation grow; exponents
"""
