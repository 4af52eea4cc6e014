"""That the session of whoever holds the generation is alive, seen in etcd: a key under an etcd lease, kept while it lives.

It decides nothing. A lease runs out when etcd's leader says so, by its clock, which nobody's right to run may hang on; and a
VM may run on after its session has died. What is seen here only keeps a user from releasing a holder that lives.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from colo.arbiter.etcd.address import EtcdAddress
from colo.arbiter.etcd.client import INT64_MAX, EtcdClient, MemberError, number
from colo.errors import ArbitrationError

_log = logging.getLogger(__name__)

TTL_S = 12
CALL_S = 3.0


def _key(token: str) -> str:
    return f"runners/{token}"


def registered(client: EtcdClient, token: str, deadline: float) -> bool:
    """Is the session seen whose claim has this token? Raises ArbitrationError when it cannot be told."""
    name = _key(token)
    return bool(token) and name in client.transaction({}, {}, (name,), deadline).found


class Registration:
    """The key of one session, kept by a thread of its own from :meth:`begin` to :meth:`end`."""

    def __init__(self, address: EtcdAddress, token: str) -> None:
        self._address = address
        self._token = token
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, generation: int) -> None:
        """Keep the key from now on, for whoever won ``generation``. Never waits."""
        if self._thread is None and not self._over.is_set():
            self._thread = threading.Thread(
                target=self._keep, args=(generation,), name="colo-arbiter-registration", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Stop keeping it: etcd removes it when its lease is over, or at once if that can be said to it. Does not wait."""
        self._over.set()

    def _keep(self, generation: int) -> None:
        client = EtcdClient(self._address)
        lease = ""
        try:
            while True:
                try:
                    if not lease or not _keep_alive(client, lease):
                        lease = _grant(client)
                        client.transaction(
                            {}, {_key(self._token): b"%d" % generation}, (), time.monotonic() + CALL_S, lease=lease)
                except ArbitrationError as error:
                    _log.info("the session is not registered: %s", error)
                    lease = ""
                if self._over.wait(TTL_S / 4):
                    break
            if lease:
                client.call("/v3/lease/revoke", {"ID": lease}, time.monotonic() + CALL_S, lambda fields: None)
        except ArbitrationError as error:
            _log.info("the session's registration ends with its lease: %s", error)
        finally:
            client.close()


def _grant(client: EtcdClient) -> str:
    return client.call("/v3/lease/grant", {"TTL": str(TTL_S)}, time.monotonic() + CALL_S, _lease)


def _lease(fields: dict[str, Any]) -> str:
    return str(number(fields.get("ID"), INT64_MAX))


def _keep_alive(client: EtcdClient, lease: str) -> bool:
    """False when the lease is over."""
    return client.call("/v3/lease/keepalive", {"ID": lease}, time.monotonic() + CALL_S, _is_alive)


def _is_alive(fields: dict[str, Any]) -> bool:
    result = fields.get("result")
    if not isinstance(result, dict):
        raise MemberError("answers with no lease")
    return number(result.get("TTL", "0"), INT64_MAX) > 0
