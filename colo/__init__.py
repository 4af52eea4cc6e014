"""colo: checkpoint streaming for running virtual machines, on QEMU's migration stream and COLO protocol."""

from __future__ import annotations

__version__ = "0.1.0"
