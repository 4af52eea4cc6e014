"""The control socket of a running session."""

ANSWER_LIMIT_BYTES = 1 << 20
"""A longer answer is an error; a client reads no more."""
