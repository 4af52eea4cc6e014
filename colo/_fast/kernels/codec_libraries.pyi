"""The C libraries that compress pages: opened when first needed, and why one cannot be used."""

METHODS: tuple[str, ...]

def probe() -> dict[str, str]:
    """Method -> the library and its version, or "not usable: " and the reasons."""

def usable_methods() -> tuple[str, ...]:
    """The methods that work here, of ``("lz4", "zstd", "mask")``."""
