"""How an etcd is named."""

from __future__ import annotations

import pytest

from colo.arbiter.etcd.address import EtcdAddress
from colo.errors import ArbitrationError


def test_members_and_prefix() -> None:
    address = EtcdAddress.parse("etcd:https://a.example:1,10.0.0.2,[::1]:3,[::2]/colo/vm-1/?ca=/x%20y/ca.pem&user=me")
    assert address.members == (("a.example", 1), ("10.0.0.2", 2379), ("::1", 3), ("::2", 2379))
    assert (address.prefix, address.tls, address.ca, address.user) == ("/colo/vm-1", True, "/x y/ca.pem", "me")


@pytest.mark.parametrize("uri", [
    "etcd:x", "etcd:http://", "etcd:http:///p", "etcd:http://a", "etcd:http://a/", "etcd:ftp://a/p", "etcd:http://a:/p",
    "etcd:http://a:0/p", "etcd:http://a:65536/p", "etcd:http://a:1x/p", "etcd:http://a:٣/p", "etcd:http://a,/p", "etcd:http://a b/p",
    "etcd:http://[::1/p", "etcd:http://[::1]x:1/p", "etcd:http://[a]/p", "etcd:http://::1/p", "etcd:http://a/p q", "etcd:http://a/p//q",
    "etcd:http://a/p\n", "etcd:http://a/p?", "etcd:http://a/p?x=y", "etcd:http://a/p?user", "etcd:http://a/p?user=",
    "etcd:http://a/p?ca=/x", "etcd:https://a/p?cert=/x", "etcd:https://a/p?user=a&user=b",
    "etcd:https://" + ",".join("a" for _ in range(17)) + "/p",
])
def test_other_forms_are_refused(uri: str) -> None:
    if uri == "etcd:http://a/p?":
        assert EtcdAddress.parse(uri).prefix == "/p"
        return
    with pytest.raises(ArbitrationError, match="an etcd is named etcd:"):
        EtcdAddress.parse(uri)


@pytest.mark.parametrize("uri", ["etcd:https://me:secret@a/p", "etcd:https://a/p?password=secret"])
def test_a_password_in_the_uri_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(ArbitrationError, match="ps shows") as caught:
        EtcdAddress.parse(uri)
    assert "secret" not in str(caught.value)


def test_a_password_does_not_travel_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("127.0.0.1", "localhost", "[::1]"):
        EtcdAddress.parse(f"etcd:http://{host}/p?user=me")
    with pytest.raises(ArbitrationError, match="use https"):
        EtcdAddress.parse("etcd:http://127.0.0.1,10.0.0.1/p?user=me")
    monkeypatch.setenv("COLO_ETCD_USER", "me")
    with pytest.raises(ArbitrationError, match="use https"):
        EtcdAddress.parse("etcd:http://10.0.0.1/p")
