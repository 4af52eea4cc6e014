"""Where the records of dirty pages go: a socket, pipe or file, or memory; and what is said when they cannot."""

class Outlet:
    """The outlet of one PageEncoder. For the core's own use: nothing is callable from Python."""
