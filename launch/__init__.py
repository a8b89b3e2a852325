"""Ways to start a run: on this machine, on a pod, on a cluster."""
