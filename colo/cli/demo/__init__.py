"""``colo demo``."""
