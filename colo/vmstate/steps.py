"""What a field compiles to: a step that saves, loads and describes it. Numbers here; the rest in ``spans``,
``nested``.

A step does its work per field or per run of fields, never per byte: neighbouring scalars share one
``struct.Struct``, arrays of numbers go through ``array`` and one byte swap.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from colo.vmdesc.cursor import Cursor, Fault
from colo.vmstate.fields import Field, I32AtMost, Scalar, Unused, counter
from colo.vmstate.promises import Entry

_SWAP = sys.byteorder == "little"
_TRUE_IS_ONE = bytes([0]) + bytes([1]) * 255
_FORMATS = {
    "B": "BHILQN", "H": "BHILQN", "I": "BHILQN", "Q": "BHILQN",
    "b": "bhilqn", "h": "bhilqn", "i": "bhilqn", "q": "bhilqn",
    "?": "?B", "d": "d",
}  # fmt: skip
"""Buffer formats that hold a scalar's values, given the item size is the same."""


def setter(attribute: str) -> Callable[[Any, Any], None]:
    """A function that sets ``attribute``, dots allowed: what ``operator.attrgetter`` is for reading."""
    head, dot, last = attribute.rpartition(".")
    if not dot:
        return lambda obj, value: setattr(obj, last, value)
    get = attrgetter(head)
    return lambda obj, value: setattr(get(obj), last, value)


def unset(obj: Any, field: Field, exc: Exception) -> Fault:
    return Fault(f"{type(obj).__name__} object: {exc}", field=field.name)


def read(get: Callable[[Any], Any], obj: Any, field: Field) -> Any:
    try:
        return get(obj)
    except AttributeError as exc:
        raise unset(obj, field, exc) from exc


def write(put: Callable[[Any, Any], None], obj: Any, value: Any, field: Field, offset: int) -> None:
    try:
        put(obj, value)
    except (AttributeError, TypeError, ValueError) as exc:
        raise Fault(
            f"{type(obj).__name__} object does not take the value: {exc}",
            offset=offset,
            value=value,
            field=field.name,
        ) from exc


def one(out: bytearray, before: int, type_name: str) -> list[Entry]:
    return [{"type": type_name, "size": len(out) - before}]


class Run:
    """Neighbouring scalars of one object: one ``struct.Struct``, one attrgetter."""

    def __init__(self, fields: list[Scalar | Unused]) -> None:
        self.fields = fields
        self.scalars = [f for f in fields if isinstance(f, Scalar)]
        self.codec = struct.Struct(
            ">" + "".join(f.code if isinstance(f, Scalar) else f"{f.size}x" for f in fields)
        )
        self.size = self.codec.size
        self.setters = [setter(f.attribute) for f in self.scalars]
        names = [f.attribute for f in self.scalars]
        self.values: Callable[[Any], tuple[Any, ...]]
        if len(names) > 1:
            self.values = attrgetter(*names)
        elif names:
            get = attrgetter(names[0])
            self.values = lambda obj: (get(obj),)
        else:
            self.values = lambda _obj: ()

    def save(self, obj: Any, out: bytearray, version: int) -> None:
        try:
            out += self.codec.pack(*self.values(obj))
        except (AttributeError, struct.error, TypeError, OverflowError) as exc:
            raise self._blame(obj, exc) from exc

    def _blame(self, obj: Any, exc: Exception) -> Fault:
        """Which of the run's fields could not be packed: found only once it is known that one cannot."""
        for field in self.scalars:
            value = read(attrgetter(field.attribute), obj, field)
            try:
                struct.pack(">" + field.code, value)
            except (struct.error, TypeError, OverflowError) as why:
                return Fault(f"{value!r} is no {field.type_name}: {why}", value=value, field=field.name)
        return Fault(str(exc))

    def load(self, obj: Any, cursor: Cursor, version: int) -> None:
        at = cursor.at
        if at + self.size > cursor.end:
            raise self._short(cursor)
        cursor.at = at + self.size
        for put, value in zip(self.setters, self.codec.unpack_from(cursor.data, at), strict=True):
            try:
                put(obj, value)
            except (AttributeError, TypeError, ValueError) as exc:
                raise self._refused(obj, at, put, value, exc) from exc

    def _short(self, cursor: Cursor) -> Fault:
        for field in self.fields:
            size = struct.calcsize(">" + field.code) if isinstance(field, Scalar) else field.size
            assert isinstance(size, int)
            if cursor.at + size > cursor.end:
                return cursor.short(size, field.name)
            cursor.at += size
        raise AssertionError("the run was not short")

    def _refused(self, obj: Any, at: int, put: Callable[..., None], value: Any, exc: Exception) -> Fault:
        wanted = self.scalars[self.setters.index(put)]
        for field in self.fields:
            if field is wanted:
                break
            at += struct.calcsize(">" + field.code) if isinstance(field, Scalar) else field.size
        message = f"{type(obj).__name__} object does not take the value: {exc}"
        return Fault(message, offset=at, value=value, field=wanted.name)

    def describe(self, obj: Any, out: bytearray, version: int) -> list[Entry]:
        """A description makes runs of one field when it describes."""
        self.save(obj, out, version)
        (field,) = self.fields
        return [{"type": field.type_name, "size": self.size}]


class CheckedScalar:
    """A scalar whose value here says which values the peer may have."""

    def __init__(self, field: Scalar | I32AtMost) -> None:
        self.field = field
        self.codec = struct.Struct(">" + (field.code if isinstance(field, Scalar) else "i"))
        self.type_name = field.described_type if isinstance(field, Scalar) else field.type_name
        self.get = attrgetter(field.attribute)
        self.put = setter(field.attribute)

    def save(self, obj: Any, out: bytearray, version: int) -> None:
        value = read(self.get, obj, self.field)
        try:
            out += self.codec.pack(value)
        except (struct.error, TypeError, OverflowError) as exc:
            raise Fault(
                f"{value!r} is no {self.type_name}: {exc}", value=value, field=self.field.name
            ) from exc

    def load(self, obj: Any, cursor: Cursor, version: int) -> None:
        field, at, size = self.field, cursor.at, self.codec.size
        if at + size > cursor.end:
            raise cursor.short(size, field.name)
        (value,) = self.codec.unpack_from(cursor.data, at)
        cursor.at = at + size
        here = read(self.get, obj, field)
        if isinstance(field, I32AtMost):
            if not 0 <= value <= here:
                raise Fault(f"{value} is not in 0..{here}", offset=at, value=value, field=field.name)
            write(self.put, obj, value, field, at)
        elif value != here:
            hint = f"; {field.hint}" if field.hint else ""
            raise Fault(
                f"it is {value} there and {here} here{hint}", offset=at, value=value, field=field.name
            )

    def describe(self, obj: Any, out: bytearray, version: int) -> list[Entry]:
        before = len(out)
        self.save(obj, out, version)
        return one(out, before, self.type_name)


class ScalarArray:
    """Numbers of one type: a list, or a buffer that is filled in place."""

    def __init__(self, field: Scalar) -> None:
        self.field = field
        self.code = field.code
        self.width = struct.calcsize(">" + field.code)
        assert field.count is not None
        self.count = counter(field, field.count, field.max_count)
        self.get = attrgetter(field.attribute)
        self.put = setter(field.attribute)

    def _view(self, value: Any) -> memoryview | None:
        """``value`` as memory that holds just such numbers in this machine's byte order, or None."""
        if value is None or isinstance(value, (list, tuple)):
            return None
        try:
            view = memoryview(value)
        except TypeError:
            return None
        fits = view.itemsize == self.width and view.format in _FORMATS[self.code] and view.c_contiguous
        return view if fits else None

    def save(self, obj: Any, out: bytearray, version: int) -> None:
        field, count = self.field, self.count(obj)
        value = read(self.get, obj, field)
        view = self._view(value)
        try:
            length = view.nbytes // self.width if view is not None else len(value)
        except TypeError as exc:
            raise Fault(
                f"{type(value).__name__} is no sequence of {field.type_name}", field=field.name
            ) from exc
        if length != count:
            raise Fault(f"it has {length} elements, {count} are declared", value=length, field=field.name)
        if view is None:
            try:
                out += struct.pack(f">{count}{self.code}", *value)
            except (struct.error, TypeError, OverflowError) as exc:
                raise self._blame(value, exc) from exc
        elif self.code == "?":
            out += view.tobytes().translate(_TRUE_IS_ONE)
        else:
            out += self._swapped(view.tobytes())

    def _swapped(self, raw: bytes | memoryview) -> bytes | memoryview:
        if self.width == 1 or not _SWAP:
            return raw
        numbers = array(self.code)
        numbers.frombytes(raw)
        numbers.byteswap()
        return numbers.tobytes()

    def _blame(self, values: Any, exc: Exception) -> Fault:
        for index, value in enumerate(values):
            try:
                struct.pack(">" + self.code, value)
            except (struct.error, TypeError, OverflowError) as why:
                message = f"{value!r} is no {self.field.type_name}: {why}"
                return Fault(message, value=value, field=f"{self.field.name}[{index}]")
        return Fault(str(exc), field=self.field.name)

    def load(self, obj: Any, cursor: Cursor, version: int) -> None:
        field, at = self.field, cursor.at
        try:
            count = self.count(obj)
            chunk = cursor.take(count * self.width)
        except Fault as fault:
            fault.path = [field.name]
            fault.offset = at
            raise
        try:
            target = self.get(obj)
        except AttributeError:
            target = None
        view = self._view(target)
        if view is not None and not view.readonly and view.nbytes == len(chunk):
            raw = bytes(chunk).translate(_TRUE_IS_ONE) if self.code == "?" else self._swapped(chunk)
            view.cast("B")[:] = raw
        elif isinstance(target, (bytes, bytearray)) and self.width == 1:
            write(self.put, obj, type(target)(chunk), field, at)
        elif (
            isinstance(target, array)
            and target.typecode in _FORMATS[self.code]
            and target.itemsize == self.width
        ):
            numbers = array(target.typecode)
            numbers.frombytes(self._swapped(chunk))
            write(self.put, obj, numbers, field, at)
        elif isinstance(target, list):
            target[:] = struct.unpack(f">{count}{self.code}", chunk)
        elif target is None or isinstance(target, tuple):
            values = struct.unpack(f">{count}{self.code}", chunk)
            write(self.put, obj, values if target is not None else list(values), field, at)
        else:
            raise Fault(
                f"{type(target).__name__} here cannot take {count} elements of {field.type_name}: use a list "
                f"or a writable buffer of {len(chunk)} bytes",
                offset=at,
                value=count,
                field=field.name,
            )

    def describe(self, obj: Any, out: bytearray, version: int) -> list[Entry]:
        self.save(obj, out, version)
        return elements(self.field, self.count(obj), self.field.type_name, self.width)


def elements(field: Field, count: int, type_name: str, size: int) -> list[Entry]:
    """The entries of an array of equal elements (QEMU migration/vmstate.c:vmsd_desc_field_start)."""
    if count == 1:
        return [{"type": type_name, "size": size}]
    if not field.compressible:
        return [{"index": i, "type": type_name, "size": size} for i in range(count)]
    return [{"array_len": count, "type": type_name, "size": size}] if count else []
