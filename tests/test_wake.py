"""An event that ends waits: in its own process, and in a forked child, which has only a copy."""

from __future__ import annotations

import os
import select
import signal

from colo.wake import Wake


def ready(wake: Wake) -> bool:
    poller = select.poll()
    poller.register(wake.fd, select.POLLIN)
    return bool(poller.poll(0))


def test_it_is_ready_from_set_to_clear_and_after_close_nothing_happens() -> None:
    wake = Wake()
    assert not ready(wake)
    wake.set()
    wake.set()
    assert ready(wake)
    wake.clear()
    wake.clear()
    assert not ready(wake)
    wake.close()
    wake.set()
    wake.clear()
    wake.close()


def test_a_forked_child_changes_nothing_and_waits_for_no_thread_of_its_parents() -> None:
    wake = Wake()
    with wake._lock:  # as another thread of the parent may hold it at that instant
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            wake.set()
            wake.close()
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert not ready(wake)
    wake.set()
    assert ready(wake)
    wake.close()
