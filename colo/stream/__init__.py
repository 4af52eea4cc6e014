"""QEMU's migration stream: its sections read and written. Pages are left to the core."""

from __future__ import annotations

from colo.limits import DEFAULT_LIMITS, StreamLimits
from colo.stream.devices import DeviceCheck, check_device_blob, read_devices
from colo.stream.ram import RamBlockInfo, mem_size, parse_mem_size
from colo.stream.reader import StreamReader
from colo.stream.sections import (
    CommandItem,
    Configuration,
    DeviceSection,
    DeviceState,
    EndOfStream,
    FileHeader,
    Item,
    LiveSection,
    Packaged,
)
from colo.vmdesc.document import parse_vmdesc
from colo.vmdesc.records import Vmdesc

__all__ = [
    "DEFAULT_LIMITS",
    "CommandItem",
    "Configuration",
    "DeviceCheck",
    "DeviceSection",
    "DeviceState",
    "EndOfStream",
    "FileHeader",
    "Item",
    "LiveSection",
    "Packaged",
    "RamBlockInfo",
    "StreamLimits",
    "StreamReader",
    "Vmdesc",
    "check_device_blob",
    "mem_size",
    "parse_mem_size",
    "parse_vmdesc",
    "read_devices",
]
