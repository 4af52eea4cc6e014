"""A VM's own methods, called: what they raise becomes the one error there is for it, and a watch hears of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from colo.errors import VmError

T = TypeVar("T")


def unguarded(doing: str | None) -> None:
    """Nobody watches whether the VM's methods return."""


def call_vm(name: str, method: Callable[[], T], guard: Callable[[str | None], None] = unguarded) -> T:
    """What ``method``, the VM's own ``name``, returns.

    ``guard`` hears its name as it begins, and None when it has ended: :meth:`VmWatch.guard <colo.vm.watch.VmWatch.guard>`
    raises then, if it was given up. Raises VmError when the method raises.
    """
    guard(name)
    try:
        return method()
    except Exception as error:
        raise VmError(f"the VM's {name}() raised {type(error).__name__}: {error}") from error
    finally:
        guard(None)
