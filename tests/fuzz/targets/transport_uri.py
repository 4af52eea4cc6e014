"""Transport URIs: refused with AddressError, or taken so that what is printed is taken for the same."""

from __future__ import annotations

from collections.abc import Iterator

from colo.errors import AddressError
from colo.transport.uri import parse_uri


def seeds() -> Iterator[bytes]:
    for uri in ("tcp:127.0.0.1:4444", "tcp:[::1]:0", "tcp::1", "unix:/run/x.sock", "fd:7", "exec:cat > x", "file:a b"):
        yield uri.encode()


def fuzz_one(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    try:
        uri = parse_uri(text)
    except AddressError:
        return
    assert "\0" not in text
    assert parse_uri(str(uri)) == uri, text
