"""``colo inspect``."""
