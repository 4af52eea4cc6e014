"""What all tests share."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A busy machine, or a sanitized core, makes nothing wrong: no test of ours times anything.
settings.register_profile("colo", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("colo")
