"""``colo doctor``."""
