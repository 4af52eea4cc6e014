"""Who stops a VM that holds no lease: a process beside it, and what finds, begins and replaces that."""
