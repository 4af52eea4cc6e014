"""What a session tells its listener: whatever that does with it, the session goes on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

OnEvent = Callable[[str, Any], None]

_log = logging.getLogger("colo.session")


def listening(on_event: OnEvent) -> OnEvent:
    """``on_event`` as a session calls it: what it raises is logged (once a session, then no more) and dropped. Only on the
    main thread KeyboardInterrupt (Ctrl-C) and SystemExit pass: there they end the program, elsewhere a thread that the VM
    needs.

    It is called on the threads that protect the VM, so it has to return soon: what it waits for, the VM waits for.
    """
    told = False

    def tell(kind: str, data: Any = None) -> None:
        nonlocal told
        try:
            on_event(kind, data)
        except BaseException as error:
            main = threading.current_thread() is threading.main_thread()
            if main and isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            if not told:
                told = True
                _log.exception("the listener failed at %r; the session goes on, and says this once", kind)

    return tell
