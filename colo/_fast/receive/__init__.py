"""Pages in: read from a descriptor, decoded, staged, applied."""
