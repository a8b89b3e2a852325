"""Training as functions: state, step, loop, checkpoints, workdir."""
