"""How each library computes a problem, one file each.

A file has `make(problem, drawn, dtype, option) -> Entry` and is imported in
the contestant's own process only.
"""
