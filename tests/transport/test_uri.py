"""URIs are typed, or refused with the reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.errors import AddressError
from colo.transport import ExecUri, FdUri, FileUri, TcpUri, TransportUri, UnixUri, parse_uri


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("tcp:127.0.0.1:4444", TcpUri("127.0.0.1", 4444)),
        ("tcp:[::1]:0", TcpUri("::1", 0)),
        ("tcp:[fe80::1%eth0]:65535", TcpUri("fe80::1%eth0", 65535)),
        ("tcp::4444", TcpUri("", 4444)),
        ("tcp:host-a.example:1", TcpUri("host-a.example", 1)),
        ("unix:/run/colo/s", UnixUri("/run/colo/s")),
        ("unix:a:b c", UnixUri("a:b c")),
        ("fd:3", FdUri(3)),
        ("exec:ssh host 'nc -U /x:y'", ExecUri("ssh host 'nc -U /x:y'")),
        ("file:/var/tmp/stream", FileUri("/var/tmp/stream")),
    ],
)
def test_each_form_is_read_and_written_back(text: str, uri: TransportUri) -> None:
    assert parse_uri(text) == uri
    assert str(uri) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is no transport URI: use tcp:HOST:PORT"),
        ("/run/socket", "is no transport URI"),
        ("tls:host:1", "there is no transport 'tls'"),
        ("TCP:host:1", "there is no transport"),
        ("tcp:4444", "there is no port"),
        ("tcp:host:", "the port is a number"),
        ("tcp:host:65536", "from 0 to 65535, got '65536'"),
        ("tcp:host:-1", "the port is a number"),
        ("tcp:host:+1", "the port is a number"),
        ("tcp:host:٣", "the port is a number"),
        ("tcp:host:1 ", "the port is a number"),
        ("tcp:host:4444,server=on", "the port is a number"),
        ("tcp:::1:4444", "goes into brackets"),
        ("tcp:[::1]", "is written tcp:"),
        ("tcp:[::1]4444", "is written tcp:"),
        ("tcp:[::1:4444", "is written tcp:"),
        ("tcp:[localhost]:1", "is written tcp:"),
        ("tcp:user@host:1", "is no host name"),
        ("tcp:a b:1", "is no host name"),
        ("unix:", "after unix: comes the path"),
        ("unix:/run/", "does not end in a slash"),
        ("unix:/a\0b", "contains a NUL"),
        ("unix:" + "x" * 108, "has 108 bytes, and a unix socket's may have 107"),
        ("unix:" + "é" * 54, "has 108 bytes"),
        ("fd:", "the number of an open file descriptor"),
        ("fd:-1", "the number of an open file descriptor"),
        ("fd:99999999999999999999", "the number of an open file descriptor"),
        ("fd:name", "the number of an open file descriptor"),
        ("exec:", "comes a shell command"),
        ("exec:  ", "comes a shell command"),
        ("file:", "comes a path"),
    ],
)
def test_what_is_wrong_is_said(text: str, reason: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_uri(text)
    assert reason in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_the_longest_path_fits() -> None:
    assert parse_uri("unix:" + "x" * 107) == UnixUri("x" * 107)


@given(
    st.text() | st.builds("{}:{}".format, st.sampled_from(["tcp", "unix", "fd", "exec", "file"]), st.text())
)
def test_any_text_is_a_uri_or_an_address_error(text: str) -> None:
    try:
        uri = parse_uri(text)
    except AddressError:
        return
    assert parse_uri(str(uri)) == uri
