"""A VM's own state as device sections, and back: what ``save_state`` returns has to travel as sections.

A blob of ``FULL`` sections up to their EOF (what :meth:`colo.vmstate.Registry.save` gives, or a QEMU's device state)
travels as it is. Any other bytes become the body of one section, :data:`STATE_IDSTR`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from colo.errors import StreamError, VmError
from colo.stream import DeviceCheck, DeviceSection, StreamLimits, check_device_blob
from colo.stream.writer import device_section, end_of_stream, section_full, vmdescription
from colo.wire import TARGET_PAGE_BYTES, SectionType

STATE_IDSTR = "colo/state"
STATE_VERSION = 1
STATE_SECTION_ID = 1
_WRAPPED = frozenset({(STATE_IDSTR, 0)})
_WRAPPED_HEAD = section_full(STATE_SECTION_ID, STATE_IDSTR, version_id=STATE_VERSION)


class StateForm:
    """How one VM's state travels; the first state decides it for the whole session.

    ``sections``: True if the VM gives sections itself, False if its bytes are to be wrapped, None to find out.
    """

    def __init__(self, limits: StreamLimits, *, sections: bool | None = None) -> None:
        self._limits = limits
        self._sections = sections
        self._check: DeviceCheck | None = None
        """Knows the sections that came first: those of every later state are found at memory speed."""

    def encode(self, state: object) -> bytes:
        """The device state to send for what ``save_state`` returned.

        Raises VmError when it is no bytes, too long, or not the sections that came first.
        """
        if not isinstance(state, bytes | bytearray | memoryview):
            raise VmError(f"save_state returned {type(state).__name__}, not bytes, bytearray or memoryview")
        try:
            raw = bytes(state)
        except (ValueError, BufferError) as error:
            raise VmError(f"save_state returned bytes that cannot be read: {error}") from error
        if len(raw) > self._limits.device_state_bytes:
            raise VmError(
                f"save_state returned {len(raw)} bytes, at most {self._limits.device_state_bytes} are taken by the "
                "secondary; large state belongs into memory blocks"
            )
        if self._sections is None:
            self._sections = raw[:1] == bytes((SectionType.FULL,)) and self._readable(raw)
        if not self._sections:
            return device_section(STATE_SECTION_ID, STATE_IDSTR, raw, version_id=STATE_VERSION) + end_of_stream()
        try:
            if self._check is None:
                self._check = DeviceCheck(check_device_blob(raw, limits=self._limits), self._limits)
            else:
                self._check.verify(raw)
        except StreamError as error:
            raise VmError(f"save_state returned no device sections as before: {error}") from error
        return raw

    def _readable(self, raw: bytes) -> bool:
        try:
            check_device_blob(raw, limits=self._limits)
        except StreamError:
            return False
        return True

    def sections_of(self, blob: bytes) -> tuple[DeviceSection, ...]:
        """The sections of an encoded state. Raises StreamError."""
        if self._sections and self._check is not None:
            return self._check.check(blob)
        return check_device_blob(blob, expect_devices=_WRAPPED, limits=self._limits)


def describe(sections: Sequence[DeviceSection]) -> bytes:
    """The VMDESCRIPTION that states the length of each section, so that a reader need not search for its end."""
    devices = [
        {
            "name": section.idstr, "instance_id": section.instance_id, "vmsd_name": section.idstr,
            "version": section.version_id,
            "fields": [{"name": "state", "type": "buffer", "size": section.length_bytes}],
        }
        for section in sections
    ]
    document = {"configuration": {}, "page_size": TARGET_PAGE_BYTES, "devices": devices}
    return vmdescription(json.dumps(document).encode())


def decode_state(blob: bytes, limits: StreamLimits) -> memoryview:
    """What ``save_state`` returned, from a committed checkpoint's device state. Raises StreamError."""
    if blob.startswith(_WRAPPED_HEAD):
        section = check_device_blob(blob, expect_devices=_WRAPPED, limits=limits)[0]
        return memoryview(blob)[section.offset : section.offset + section.length_bytes]
    return memoryview(blob)
