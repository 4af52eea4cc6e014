"""A small ARM64 machine in this process, on the Unicorn CPU emulator: a VM to protect that needs nothing but pip.

::

    vm = EmbeddedVm(64 << 20)
    walk = Walk(pages=4096, lines=100)
    walk.load_into(vm)
    vm.console.output = lambda position, data: print(data.decode(), end="")
    vm.resume()

``machine`` puts together the CPU (``engine``, ``cpu``) and the devices (``console``, ``timer``); ``guest`` is the program
that runs on it. ``console_link`` and ``console_observer`` are the two ends of the line by which the console's bytes reach
the world exactly once, whichever side the VM runs on. Needs the ``demo`` extra: ``pip install 'colo-vm[demo]'``.
"""

from __future__ import annotations

from .console import Console
from .guest import Walk
from .machine import EmbeddedVm

__all__ = ["Console", "EmbeddedVm", "Walk"]
