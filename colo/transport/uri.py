"""What a transport URI says, typed. The forms are those of QEMU's ``-incoming`` and ``migrate``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from colo.errors import AddressError
from colo.private import UNIX_PATH_MAX_BYTES

_FORMS = "tcp:HOST:PORT ([…] around an IPv6 address), unix:PATH, fd:N, exec:COMMAND or file:PATH"


@dataclass(frozen=True, slots=True)
class TcpUri:
    """``host`` "" stands for every address of this machine; ``port`` 0, when listening, for any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixUri:
    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class FdUri:
    """A socket that this process has inherited: connected, or listening."""

    fd: int

    def __str__(self) -> str:
        return f"fd:{self.fd}"


@dataclass(frozen=True, slots=True)
class ExecUri:
    """A shell command whose standard input and output are the channel."""

    command: str

    def __str__(self) -> str:
        return f"exec:{self.command}"


@dataclass(frozen=True, slots=True)
class FileUri:
    """A stored stream: no channel, nothing answers."""

    path: str

    def __str__(self) -> str:
        return f"file:{self.path}"


TransportUri = TcpUri | UnixUri | FdUri | ExecUri | FileUri


def parse_uri(uri: str) -> TransportUri:
    """Take ``uri`` apart. Raises AddressError when it has none of the forms, or a part of it is malformed; the message says
    which."""
    kind, colon, rest = uri.partition(":")
    if not colon:
        raise AddressError(f"{uri!r} is no transport URI: use {_FORMS}")
    if "\0" in rest:
        raise AddressError(f"{uri!r} contains a NUL")
    if kind == "tcp":
        return _parse_tcp(uri, rest)
    if kind == "unix":
        return parse_unix(rest)
    if kind == "fd":
        if not re.fullmatch(r"[0-9]{1,9}", rest, re.ASCII):
            raise AddressError(f"{uri!r}: after fd: comes the number of an open file descriptor, as fd:3")
        return FdUri(int(rest))
    if kind == "exec":
        if not rest.strip():
            raise AddressError(f"{uri!r}: after exec: comes a shell command")
        return ExecUri(rest)
    if kind == "file":
        if not rest:
            raise AddressError(f"{uri!r}: after file: comes a path")
        return FileUri(rest)
    raise AddressError(f"{uri!r}: there is no transport {kind!r}: use {_FORMS}")


def _parse_tcp(uri: str, rest: str) -> TcpUri:
    if rest.startswith("["):
        host, bracket, after = rest[1:].partition("]")
        if not bracket or not after.startswith(":") or ":" not in host:
            raise AddressError(f"{uri!r}: an IPv6 address is written tcp:[ADDRESS]:PORT, as tcp:[::1]:4444")
        port = after[1:]
    else:
        host, colon, port = rest.rpartition(":")
        if not colon:
            raise AddressError(f"{uri!r}: there is no port: use tcp:HOST:PORT")
        if ":" in host:
            raise AddressError(f"{uri!r}: an IPv6 address goes into brackets, as tcp:[::1]:4444")
    if any(char.isspace() or char in "/@?#[]" for char in host):
        raise AddressError(f"{uri!r}: {host!r} is no host name or address")
    if not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or int(port) > 65535:
        raise AddressError(f"{uri!r}: the port is a number from 0 to 65535, got {port!r}")
    return TcpUri(host, int(port))


def parse_unix(path: str) -> UnixUri:
    """A unix socket's path. Raises AddressError as :func:`parse_uri`."""
    uri = f"unix:{path}"
    if not path or "\0" in path:
        raise AddressError(f"{uri!r}: after unix: comes the path of the socket")
    size = len(os.fsencode(path))
    if size > UNIX_PATH_MAX_BYTES:
        raise AddressError(
            f"{uri!r}: the path has {size} bytes, and a unix socket's may have {UNIX_PATH_MAX_BYTES}: "
            "use a shorter or a relative one"
        )
    if path.endswith("/"):
        raise AddressError(f"{uri!r}: a socket's path does not end in a slash")
    return UnixUri(path)
