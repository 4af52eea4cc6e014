"""Which pages were written: one way of finding out a module."""
