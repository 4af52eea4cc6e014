"""Steps of flat fields that are no numbers: buffers, timers, bitmaps, and what takes no bytes."""

from __future__ import annotations

import struct
from operator import attrgetter
from typing import Any

from colo.vmdesc.cursor import Cursor, Fault, as_bytes_view
from colo.vmdesc.encoding import reversed_words
from colo.vmstate.fields import Bitmap, Buffer, Field, Timer, Validate, counter
from colo.vmstate.promises import Entry, Step
from colo.vmstate.steps import elements, one, read, setter, write


class Bytes:
    """A buffer: copied in one go, in place where it can be."""

    def __init__(self, field: Buffer) -> None:
        self.field = field
        self.size = counter(field, field.size, field.max_size, "size")
        self.get = attrgetter(field.attribute)
        self.put = setter(field.attribute)

    def save(self, obj: Any, out: bytearray, version: int) -> None:
        field, size = self.field, self.size(obj)
        value = read(self.get, obj, field)
        try:
            view = as_bytes_view(value)
        except (TypeError, BufferError) as exc:
            raise Fault(f"{type(value).__name__} is no contiguous buffer", field=field.name) from exc
        if len(view) != size:
            raise Fault(f"it has {len(view)} bytes, {size} are declared", value=len(view), field=field.name)
        out += view

    def load(self, obj: Any, cursor: Cursor, version: int) -> None:
        field, at = self.field, cursor.at
        try:
            chunk = cursor.take(self.size(obj))
        except Fault as fault:
            fault.path = [field.name]
            fault.offset = at
            raise
        try:
            target = self.get(obj)
        except AttributeError:
            target = None
        if target is None or isinstance(target, bytes):
            write(self.put, obj, bytes(chunk), field, at)
            return
        try:
            view = as_bytes_view(target)
        except (TypeError, BufferError) as exc:
            raise Fault(f"{type(target).__name__} here is no contiguous buffer", field=field.name) from exc
        if len(view) == len(chunk) and not view.readonly:
            view[:] = chunk
        elif isinstance(target, bytearray):
            write(self.put, obj, bytearray(chunk), field, at)
        else:
            state = "read-only" if view.readonly else f"of {len(view)} bytes"
            raise Fault(
                f"the buffer here is {state} and cannot take {len(chunk)} bytes",
                offset=at,
                value=len(chunk),
                field=field.name,
            )

    def describe(self, obj: Any, out: bytearray, version: int) -> list[Entry]:
        before = len(out)
        self.save(obj, out, version)
        return one(out, before, self.field.type_name)


class Timers:
    """Expiry times, -1 for none."""

    def __init__(self, field: Timer) -> None:
        self.field = field
        self.single = field.count is None
        self.count = counter(field, 1 if field.count is None else field.count, field.max_count)
        self.get = attrgetter(field.attribute)
        self.put = setter(field.attribute)

    def save(self, obj: Any, out: bytearray, version: int) -> None:
        field, count = self.field, self.count(obj)
        value = read(self.get, obj, field)
        times = (value,) if self.single else tuple(value)
        if len(times) != count:
            raise Fault(
                f"it has {len(times)} elements, {count} are declared", value=len(times), field=field.name
            )
        try:
            out += struct.pack(f">{count}q", *[-1 if t is None else t for t in times])
        except (struct.error, TypeError) as exc:
            raise Fault(f"{value!r} is no time in ns: {exc}", value=value, field=field.name) from exc

    def load(self, obj: Any, cursor: Cursor, version: int) -> None:
        field, at = self.field, cursor.at
        try:
            count = self.count(obj)
            chunk = cursor.take(8 * count)
        except Fault as fault:
            fault.path = [field.name]
            fault.offset = at
            raise
        times = [None if t == -1 else t for t in struct.unpack(f">{count}q", chunk)]
        write(self.put, obj, times[0] if self.single else times, field, at)

    def describe(self, obj: Any, out: bytearray, version: int) -> list[Entry]:
        self.save(obj, out, version)
        return elements(self.field, self.count(obj), self.field.type_name, 8)


class Bits:
    """A bitmap: big-endian 64-bit words, lowest bits in the first."""

    def __init__(self, field: Bitmap) -> None:
        self.field = field
        self.bits = counter(field, field.bits, field.max_bits, "bits")
        self.get = attrgetter(field.attribute)
        self.put = setter(field.attribute)

    def save(self, obj: Any, out: bytearray, version: int) -> None:
        field, bits = self.field, self.bits(obj)
        size = -(-bits // 64) * 8
        value = read(self.get, obj, field)
        if isinstance(value, int):
            if value < 0 or value.bit_length() > bits:
                raise Fault(f"{value:#x} does not fit {bits} bits", value=value, field=field.name)
            raw = value.to_bytes(size, "little")
        else:
            try:
                view = as_bytes_view(value)
            except (TypeError, BufferError) as exc:
                raise Fault(
                    f"{type(value).__name__} is no bitmap: use an int or a buffer", field=field.name
                ) from exc
            raw = bytes(view)
        if len(raw) != size:
            raise Fault(f"it has {len(raw)} bytes, {bits} bits take {size}", value=len(raw), field=field.name)
        out += reversed_words(raw)

    def load(self, obj: Any, cursor: Cursor, version: int) -> None:
        field, at = self.field, cursor.at
        try:
            bits = self.bits(obj)
            raw = reversed_words(cursor.take(-(-bits // 64) * 8))
        except Fault as fault:
            fault.path = [field.name]
            fault.offset = at
            raise
        try:
            target = self.get(obj)
        except AttributeError:
            target = None
        if target is None or isinstance(target, int):
            # QEMU sends whole words: what lies past the last bit is nobody's.
            value = int.from_bytes(raw, "little") & ((1 << bits) - 1)
            write(self.put, obj, value, field, at)
            return
        try:
            view = as_bytes_view(target)
            view[:] = raw
        except (TypeError, ValueError, BufferError) as exc:
            raise Fault(
                f"{type(target).__name__} here cannot take {len(raw)} bytes of bitmap: {exc}",
                offset=at,
                value=bits,
                field=field.name,
            ) from exc

    def describe(self, obj: Any, out: bytearray, version: int) -> list[Entry]:
        before = len(out)
        self.save(obj, out, version)
        return one(out, before, self.field.type_name)


class Check:
    """No bytes, a condition."""

    def __init__(self, field: Validate) -> None:
        self.field = field

    def save(self, obj: Any, out: bytearray, version: int) -> None:
        if not self.field.check(obj, version):
            raise Fault("the state to save is not valid", field=self.field.name)

    def load(self, obj: Any, cursor: Cursor, version: int) -> None:
        if not self.field.check(obj, version):
            raise Fault("the loaded state is not valid", offset=cursor.at, field=self.field.name)

    def describe(self, obj: Any, out: bytearray, version: int) -> list[Entry]:
        self.save(obj, out, version)
        return []


class Guarded:
    """A step that is taken only when its field exists."""

    def __init__(self, field: Field, step: Step) -> None:
        assert field.exists is not None
        self.exists = field.exists
        self.field = field
        self.step = step

    def save(self, obj: Any, out: bytearray, version: int) -> None:
        if self.exists(obj, version):
            self.step.save(obj, out, version)

    def load(self, obj: Any, cursor: Cursor, version: int) -> None:
        if self.exists(obj, version):
            self.step.load(obj, cursor, version)

    def describe(self, obj: Any, out: bytearray, version: int) -> list[Entry]:
        return self.step.describe(obj, out, version) if self.exists(obj, version) else []
