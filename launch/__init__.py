"""Starts runs of several processes; README.md has the commands."""
