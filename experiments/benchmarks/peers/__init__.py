"""Implementations of the problems, one module per library.

A module has `make(problem, drawn, dtype, option) -> Calls` and is imported in
the process of its implementation only.
"""
