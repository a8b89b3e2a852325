"""How each library computes a problem, one file each.

A file has `make(problem, drawn, dtype, option) -> Calls` and is imported in
the implementation's own process only.
"""
