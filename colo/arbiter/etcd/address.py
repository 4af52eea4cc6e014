"""Where an etcd is, and how it is spoken to: the URI of an arbiter ``etcd:``."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
import stat
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qsl

from colo.errors import ArbitrationError

PORT = 2379
MEMBERS_MAX = 16
PASSWORD_BYTES_MAX = 1024
FORM = "etcd:http(s)://HOST:PORT,HOST:PORT,…/PREFIX"
OPTIONS = ("ca", "cert", "key", "user", "password-file")

_PREFIX = re.compile(r"(/[A-Za-z0-9._~@:+=-]+)+")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class EtcdAddress:
    """Members, the keys' common beginning (``/PREFIX``), and who we are to them. No secrets: those are read when used."""

    uri: str
    members: tuple[tuple[str, int], ...]
    prefix: str
    tls: bool
    ca: str = ""
    cert: str = ""
    key: str = ""
    user: str = ""
    password_file: str = ""

    @classmethod
    def parse(cls, uri: str) -> EtcdAddress:
        """By its URI::

            etcd:https://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379/vm1?ca=/etc/colo/ca.pem&user=colo&password-file=/etc/colo/pw

        ``ca``: who signed the members' certificates (default: whom this machine trusts); ``cert`` and ``key``: our own.
        ``user`` may also be in COLO_ETCD_USER; the password is in ``password-file`` or in COLO_ETCD_PASSWORD, never here,
        where ``ps`` shows it. The keys are ``/PREFIX/identity``, ``/PREFIX/generation`` and ``/PREFIX/runners/TOKEN``.

        Raises ArbitrationError when it is not of this form.
        """

        def wrong(text: str) -> ArbitrationError:
            return ArbitrationError(f"{uri!r}: {text}; an etcd is named {FORM}")

        rest = uri.removeprefix("etcd:")
        scheme, slashes, rest = rest.partition("://")
        if scheme not in {"http", "https"} or not slashes:
            raise wrong("neither http:// nor https://")
        rest, _, query = rest.partition("?")
        hosts, slash, prefix = rest.partition("/")
        if "@" in hosts:
            # The URI is not repeated: it may hold the password.
            raise ArbitrationError(
                "an etcd's user and password are not given in its URI, where ps shows them: use "
                "?user=NAME&password-file=FILE, or the environment's COLO_ETCD_USER and COLO_ETCD_PASSWORD")
        prefix = slash + prefix.rstrip("/")
        if not _PREFIX.fullmatch(prefix) or len(prefix) > 256:
            raise wrong("the prefix of its keys is missing, or not made of letters, digits, . _ ~ @ : + = - and /")
        members = tuple(_member(host, wrong) for host in hosts.split(","))
        if len(members) > MEMBERS_MAX:
            raise wrong(f"more than {MEMBERS_MAX} members")
        options = dict.fromkeys(OPTIONS, "")
        try:
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=len(OPTIONS))
        except ValueError as error:
            raise wrong(f"after the question mark: {error}") from None
        for name, value in pairs:
            if name == "password":
                raise ArbitrationError(
                    "an etcd's password is not given in its URI, where ps shows it: use password-file=FILE")
            if name not in options or options[name] or not value:
                raise wrong(f"{name!r} is no option of it, is empty, or is given twice (there are {', '.join(OPTIONS)})")
            options[name] = value
        if (options["ca"] or options["cert"] or options["key"]) and scheme != "https":
            raise wrong("certificates need https://")
        if bool(options["cert"]) != bool(options["key"]):
            raise wrong("cert and key are given together")
        user = options["user"] or os.environ.get("COLO_ETCD_USER", "")
        address = cls(
            uri, members, prefix, scheme == "https", options["ca"], options["cert"], options["key"], user,
            options["password-file"])
        if user and not address.tls and not all(_loopback(host) for host, _ in members):
            raise wrong("a password over http can be read on the way: use https")
        return address

    def password(self) -> str:
        """The user's, from its file or the environment. Raises ArbitrationError when there is none, or others can read it."""
        if not self.password_file:
            if password := os.environ.get("COLO_ETCD_PASSWORD", ""):
                return password
            raise ArbitrationError(
                f"etcd user {self.user!r} has no password: give password-file=FILE in the URI, or COLO_ETCD_PASSWORD in the "
                "environment")
        try:
            with open(self.password_file, "rb", opener=_never_waiting) as file:
                mode = os.fstat(file.fileno()).st_mode
                text = file.read(PASSWORD_BYTES_MAX + 1) if stat.S_ISREG(mode) else b""
        except OSError as error:
            raise ArbitrationError(f"etcd password file {self.password_file}: {error.strerror}") from error
        if mode & 0o077:
            raise ArbitrationError(f"etcd password file {self.password_file} is open to others: chmod 600 it")
        if not 0 < len(text) <= PASSWORD_BYTES_MAX:
            raise ArbitrationError(f"etcd password file {self.password_file} holds no password")
        try:
            return text.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            raise ArbitrationError(f"etcd password file {self.password_file} is not UTF-8") from None

    def tls_context(self) -> ssl.SSLContext | None:
        """What to trust, and who we are; None without TLS. Raises ArbitrationError when a file cannot be used."""
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca or None)
            if self.cert:
                context.load_cert_chain(self.cert, self.key, password=_no_passphrase)
        except (OSError, ValueError) as error:
            files = ", ".join(name for name in (self.ca, self.cert, self.key) if name)
            raise ArbitrationError(f"etcd certificates ({files}): {error}") from error
        return context


def _never_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase, and nobody is there to be asked: store it without")


def _member(text: str, wrong: Callable[[str], ArbitrationError]) -> tuple[str, int]:
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        good = bool(bracket) and (not port or port.startswith(":"))
        port = port[1:]
        try:
            good = good and ipaddress.ip_address(host).version == 6
        except ValueError:
            good = False
    else:
        host, colon, port = text.partition(":")
        good = bool(_HOST.fullmatch(host)) and bool(port or not colon)
    if not good or (port and not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536)):
        raise wrong(f"{text!r} is no HOST:PORT")
    return host, int(port) if port else PORT


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
