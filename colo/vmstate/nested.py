"""Steps of fields that carry another description: one object, lists of them, pointers, queues."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from colo.errors import LimitExceeded
from colo.vmdesc.cursor import Cursor, Fault
from colo.vmdesc.encoding import NULL_MARKER
from colo.vmstate.fields import Nested, Pointers, Queue, Struct, Structs, counter
from colo.vmstate.promises import Entry
from colo.vmstate.steps import read, setter, write

_MORE, _LAST = 1, 0
"""The byte before each element of a queue, and the one after the last."""


class One:
    """An object with its own description."""

    def __init__(self, field: Struct) -> None:
        self.field = field
        self.of = field.description
        self.version = field.inner_version
        self.get = attrgetter(field.attribute)
        self.put = setter(field.attribute)

    def _here(self, obj: Any) -> Any:
        inner = read(self.get, obj, self.field)
        if inner is None:
            raise Fault(f"it is None: there is no {self.of.name!r} to save", field=self.field.name)
        return inner

    def save(self, obj: Any, out: bytearray, version: int) -> None:
        inner = self._here(obj)
        try:
            self.of.save_into(inner, out, self.version)
        except Fault as fault:
            fault.inside(self.field.name)
            raise

    def load(self, obj: Any, cursor: Cursor, version: int) -> None:
        try:
            inner = self.get(obj)
        except AttributeError:
            inner = None
        made = inner is None
        if made:
            inner = self.field.make()
        try:
            self.of.load_from(inner, cursor, self.version)
        except Fault as fault:
            fault.inside(self.field.name)
            raise
        if made:
            write(self.put, obj, inner, self.field, cursor.at)

    def describe(self, obj: Any, out: bytearray, version: int) -> list[Entry]:
        inner, before = self._here(obj), len(out)
        try:
            told = self.of.describe_into(inner, out, self.version)
        except Fault as fault:
            fault.inside(self.field.name)
            raise
        size = len(out) - before
        if self.field.version is None:
            return [{"type": "struct", "struct": told, "size": size}]
        # QEMU opens no "struct" for a struct of chosen version: its fields stand in the entry itself.
        return [{"type": "vstruct", **told, "size": size}]


class Many:
    """A list of objects of one description; elements may be None where the field says pointers."""

    def __init__(self, field: Structs) -> None:
        self.field = field
        self.of = field.description
        self.version = self.of.version
        self.pointers = isinstance(field, Pointers)
        self.count = counter(field, field.count, field.max_count)
        self.get = attrgetter(field.attribute)
        self.put = setter(field.attribute)

    def _here(self, obj: Any) -> Any:
        count, elements = self.count(obj), read(self.get, obj, self.field)
        if len(elements) != count:
            raise Fault(
                f"it has {len(elements)} elements, {count} are declared",
                value=len(elements),
                field=self.field.name,
            )
        return elements

    def save(self, obj: Any, out: bytearray, version: int) -> None:
        elements = self._here(obj)
        save_into, inner_version, index = self.of.save_into, self.version, 0
        try:
            for index, element in enumerate(elements):  # noqa: B007 - told in the fault
                if element is None:
                    self._save_null(out)
                else:
                    save_into(element, out, inner_version)
        except Fault as fault:
            fault.inside(f"{self.field.name}[{index}]")
            raise

    def _save_null(self, out: bytearray) -> None:
        if not self.pointers:
            raise Fault(f"it is None: declare Pointers if a {self.of.name!r} may be missing")
        out.append(NULL_MARKER)

    def _targets(self, obj: Any, cursor: Cursor) -> list[Any]:
        """The elements to load into: those that are here, made to be as many as the stream has."""
        field = self.field
        try:
            count = self.count(obj)
        except Fault as fault:
            fault.offset = cursor.at
            raise
        try:
            elements = self.get(obj)
        except AttributeError:
            elements = None
        if elements is None or (
            len(elements) != count and (len(elements) == 0 or isinstance(field.count, str))
        ):
            # Every element takes at least a byte in any description that is not empty: no peer can make us
            # build more elements than it sent bytes.
            least = self.of.least_bytes
            if least and count * least > cursor.end - cursor.at:
                raise cursor.short(count * least, field.name)
            kept = list(elements or ())[:count]
            kept += [field.make() for _ in range(count - len(kept))]
            if isinstance(elements, list):
                elements[:] = kept
            else:
                elements = kept
                write(self.put, obj, elements, field, cursor.at)
        if len(elements) != count:
            raise Fault(
                f"{len(elements)} elements are here, {count} are declared",
                offset=cursor.at,
                value=count,
                field=field.name,
            )
        return elements  # type: ignore[no-any-return]

    def load(self, obj: Any, cursor: Cursor, version: int) -> None:
        elements = self._targets(obj, cursor)
        load_from, inner_version, index = self.of.load_from, self.version, 0
        try:
            for index, element in enumerate(elements):  # noqa: B007 - told in the fault
                if element is None:
                    self._load_null(cursor)
                else:
                    load_from(element, cursor, inner_version)
        except Fault as fault:
            fault.inside(f"{self.field.name}[{index}]")
            raise

    def _load_null(self, cursor: Cursor) -> None:
        at = cursor.at
        if not self.pointers:
            raise Fault(f"it is None here: there is no {self.of.name!r} to load into", offset=at)
        marker = cursor.take(1)[0]
        if marker != NULL_MARKER:
            raise Fault(
                f"it is None here, and {marker:#04x} there is no null marker ({NULL_MARKER:#04x}): "
                "both ends must have the same ones",
                offset=at,
                value=marker,
            )

    def describe(self, obj: Any, out: bytearray, version: int) -> list[Entry]:
        told: list[Entry] = []
        elements = self._here(obj)
        index = 0
        try:
            for index, element in enumerate(elements):  # noqa: B007 - told in the fault
                before = len(out)
                if element is None:
                    self._save_null(out)
                    told.append({"type": "nullptr", "size": 1})
                else:
                    inner = self.of.describe_into(element, out, self.version)
                    told.append({"type": "struct", "struct": inner, "size": len(out) - before})
        except Fault as fault:
            fault.inside(f"{self.field.name}[{index}]")
            raise
        if len(told) <= 1:
            return told
        # QEMU tells an array by its first element whenever none of the fields is conditional, and so mistells
        # arrays whose elements differ in length; those are told one by one here.
        if self.field.compressible and all(entry == told[0] for entry in told):
            return [{"array_len": len(told), **told[0]}]
        return [{"index": i, **entry} for i, entry in enumerate(told)]


class Elements:
    """A queue: a byte before each element that says there is one, and a last that says there is none."""

    def __init__(self, field: Queue) -> None:
        self.field = field
        self.of = field.description
        self.get = attrgetter(field.attribute)
        self.put = setter(field.attribute)

    def _here(self, obj: Any) -> Any:
        queue = read(self.get, obj, self.field)
        if len(queue) > self.field.max_count:
            raise Fault(
                f"it has {len(queue)} elements, {self.field.max_count} are allowed",
                kind=LimitExceeded,
                value=len(queue),
                field=self.field.name,
            )
        return queue

    def save(self, obj: Any, out: bytearray, version: int) -> None:
        self._write(obj, out, described=False)

    def describe(self, obj: Any, out: bytearray, version: int) -> list[Entry]:
        before = len(out)
        told = self._write(obj, out, described=True)
        return [{"type": self.field.type_name, "elements": told, "size": len(out) - before}]

    def _write(self, obj: Any, out: bytearray, *, described: bool) -> list[Entry]:
        told: list[Entry] = []
        for index, element in enumerate(self._here(obj)):
            out.append(_MORE)
            try:
                if described:
                    told.append(self.of.describe_into(element, out, self.of.version))
                else:
                    self.of.save_into(element, out, self.of.version)
            except Fault as fault:
                fault.inside(f"{self.field.name}[{index}]")
                raise
        out.append(_LAST)
        return told

    def load(self, obj: Any, cursor: Cursor, version: int) -> None:
        field = self.field
        loaded: list[Any] = []
        while True:
            at = cursor.at
            if at >= cursor.end:
                raise cursor.short(1, field.name)
            more = cursor.take(1)[0]
            if not more:
                break
            if len(loaded) >= field.max_count:
                raise Fault(
                    f"more than {field.max_count} elements",
                    kind=LimitExceeded,
                    offset=at,
                    value=len(loaded) + 1,
                    field=field.name,
                )
            element = field.make()
            try:
                self.of.load_from(element, cursor, self.of.version)
            except Fault as fault:
                fault.inside(f"{field.name}[{len(loaded)}]")
                raise
            loaded.append(element)
        try:
            queue = self.get(obj)
        except AttributeError:
            queue = None
        if queue is None:
            write(self.put, obj, loaded, field, cursor.at)
        else:
            # Any mutable sequence, a deque too, keeps its identity.
            queue.clear()
            queue.extend(loaded)


def compile_nested(field: Nested) -> One | Many | Elements:
    if isinstance(field, Struct):
        return One(field)
    if isinstance(field, Structs):
        return Many(field)
    assert isinstance(field, Queue)
    return Elements(field)
