"""Work that may hang (a file server, a name server), and is given up after a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


class Bounded:
    """Runs one piece of work after the other, each on a thread of its own, and waits ``timeout_s`` for it at most.

    ``error`` makes the exception for a text; OSError of the work is told by it as well.
    """

    def __init__(self, timeout_s: float, error: Callable[[str], Exception]) -> None:
        self.timeout_s = timeout_s
        self._error = error
        self._lock = threading.Lock()

    def run(
        self, work: Callable[[], _T], what: str, *, given: Callable[[_T], None] = lambda result: None
    ) -> _T:
        """The result of ``work``, or what it raised.

        ``given`` is told, before the next call can begin, that the result did not come too late.
        """
        results: list[_T] = []
        errors: list[BaseException] = []
        ending = threading.Lock()
        abandoned = False

        def run() -> None:
            try:
                with self._lock:
                    if abandoned:
                        return
                    result = work()
                    with ending:
                        if not abandoned:
                            given(result)
                            results.append(result)
            except OSError as error:
                errors.append(self._error(f"{what}: {error.strerror or error}"))
                errors[-1].__cause__ = error
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, name="colo-arbiter", daemon=True)
        thread.start()
        thread.join(self.timeout_s)
        with ending:
            abandoned = not results
        if results:
            return results[0]
        if errors:
            raise errors[0]
        raise self._error(f"{what}: no answer for {self.timeout_s:g} s")
