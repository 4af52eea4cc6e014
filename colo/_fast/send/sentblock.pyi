"""The RAM block whose pages are being sent."""

class SentBlock:
    """The open block of one PageEncoder. For the core's own use: nothing is callable from Python."""
