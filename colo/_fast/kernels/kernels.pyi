"""Which SIMD level the core uses. ``COLO_SIMD=portable|sse2|avx2|avx512|neon`` in the environment, read at import,
overrides the choice; a level that this machine does not have is ignored with a RuntimeWarning that names those it has."""

def levels() -> tuple[str, ...]:
    """Names of the SIMD levels this build and CPU have, slowest first; the last is the default."""

def active_level() -> str:
    """Name of the level in use when none is asked for."""
