"""The other side of a primary in this process, and a way to it that can be cut."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from typing import Any

from colo.errors import ColoError
from colo.session.vm_secondary import VmSecondary, VmSecondaryConfig, VmTakeover


class Standby:
    """An in-process secondary on a thread, and what became of it."""

    def __init__(self, vm: Any, arbiter: Path | str, **options: Any) -> None:
        uri = arbiter if isinstance(arbiter, str) else f"file:{arbiter}"
        self.vm = vm
        self.outcome: VmTakeover | BaseException | None = None
        self.notices: list[str] = []
        self.secondary = VmSecondary(
            vm, VmSecondaryConfig(**{"listen": "tcp:127.0.0.1:0", "arbiter": uri, "resume": False, **options}),
            on_event=lambda kind, data: self.notices.append(str(data)))
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.outcome = self.secondary.run()
        except ColoError as error:
            self.outcome = error

    def join(self) -> Any:
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.outcome

    def close(self) -> None:
        if self.thread.is_alive():
            self.secondary.stop()
            self.thread.join(20)
        self.secondary.close()


class Cut:
    """Carries one connection after the other to ``address``, until each is cut."""

    def __init__(self, address: str) -> None:
        _, host, port = address.split(":")
        self.to = (host, int(port))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp:127.0.0.1:{self.listener.getsockname()[1]}"
        self.ends: list[socket.socket] = []
        """Of all connections: the migration stream's, and the lease's."""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(self.to)
                self.ends += [near, far]
                for a, b in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(a, b), daemon=True).start()

    def _carry(self, a: socket.socket, b: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := a.recv(1 << 16):
                b.sendall(data)

    def cut(self) -> None:
        ends, self.ends = self.ends, []
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
