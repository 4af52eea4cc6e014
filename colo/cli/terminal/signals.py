"""Signals that end a session in order, heard whatever the session's thread waits for."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator

ENDING = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def on_ending_signals(act: Callable[[], object]) -> Iterator[None]:
    """Inside, each SIGTERM and SIGINT calls ``act()``, on a thread of its own. To be entered in the main thread.

    Python runs a signal's handler in the main thread when that comes back from what it waits in. A signal that the kernel
    gives to another thread, or that comes just before the wait begins, does not end it: the wait may be for ever.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def listen() -> None:
        while number := reader.recv(1):
            if number[0] in ENDING:
                act()

    before = {number: signal.signal(number, lambda *_: None) for number in ENDING}
    before_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=listen, name="colo-signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before_fd)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()
        thread.join(1.0)
        if not thread.is_alive():  # else `act` hangs, and reads from it again
            reader.close()
