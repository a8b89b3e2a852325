"""Experiments: scripts to run as `python -m experiments.NAME --help`."""
