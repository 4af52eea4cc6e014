"""The control socket of a running session."""
