"""Experiments: thin recipes, each `python -m experiments.NAME --help`."""
