"""The suites of `experiments.benchmark`.

Modules that all suites use:

timing.py           times calls in turn; medians, ratios; describes the machine
processes.py        worker processes that run functions on request
report.py           rows of results, ratios, targets, tables
plots.py            all plots

Suites that compare libraries, each in a process of its own:

problems.py         the problems: shapes, parameters, inputs
implementations.py  the table of implementations
peers/              one module per library, which computes a problem
networks.py         makes the timed calls from a library's network
worker.py           runs in the process of an implementation
comparison.py       starts these processes, compares values, times in turn

The suite for accelerators, all of which runs in worker processes:

accelerator.py      what to measure in which order, until the time is over
correctness.py      every cell by every method against a loop in float64
roofline.py         the least time that a device's published peaks allow
ahead.py            XLA's cost analysis of programs for TPUs, without a TPU

Suites that run in the process of `experiments.benchmark`:

programs.py         compiled programs of `recurrent.unroll`
training.py         a train step of the language model, in several processes too
throughput.py       throughput of the training loop and of decoding
methods.py          every cell by every method
scaling.py          growth of time, memory and compilation with the size
"""
