"""A vmdesc's JSON to plain objects: bounded before it is parsed, and repeated keys kept.

QEMU tells each element of a queue (``qtailq``) by the same keys, all in one object. A plain parser keeps the last of them;
here they are a list, ``elements``, one object for each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from colo.errors import LimitExceeded, StreamError, Truncated
from colo.limits import DEFAULT_LIMITS, StreamLimits

WHERE = "VMDESCRIPTION"
DESCRIBED = ("vmsd_name", "version", "fields", "subsections")
"""The members of a description."""
ELEMENTS = "elements"
"""Where the repeated ones are kept."""
_QUOTE = ord('"')
_HAS_QUEUES = b"qtailq"

# Strings are matched whole so that brackets inside them do not count. One without an end goes on to the end
# of the text, so that nothing is matched twice: the JSON parser then refuses it.
_TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]|,', re.DOTALL)
_STRINGS = re.compile(rb'"[^"]*+"?')
_TO_SQUARE = bytes.maketrans(b"{}", b"[]")
_NOT_MARKS = bytes(byte for byte in range(256) if byte not in b'[]{},"\\')


def read_text(text: bytes, *, offset: int = 0, limits: StreamLimits = DEFAULT_LIMITS) -> Any:
    """The JSON value ``text`` (which starts at ``offset`` in the stream).

    Raises LimitExceeded when it is longer or nested deeper, or has more values, than the limits allow, before it is parsed;
    StreamError, with the byte offset, when it is not UTF-8 or not JSON, and Truncated when the JSON ends in the middle.
    """
    if len(text) > limits.vmdesc_bytes:
        raise LimitExceeded(
            f"{len(text)} bytes, at most {limits.vmdesc_bytes} are read", where=WHERE, offset=offset, value=len(text))
    _bound(text, offset, limits)
    # Only a queue's entry repeats keys, and a hook costs half as much again as parsing without one.
    hook = _kept if _HAS_QUEUES in text else None
    try:
        # As text: given bytes, the parser would take UTF-16 and UTF-32 too, whose brackets were not counted.
        return json.loads(text.decode(), parse_constant=_refuse_constant, object_pairs_hook=hook)
    except json.JSONDecodeError as error:
        kind = Truncated if error.pos >= len(error.doc) else StreamError
        raise kind(
            f"not JSON: {error.msg}",
            where=WHERE,
            offset=offset + len(error.doc[: error.pos].encode()),
            value=error.msg,
        ) from None
    except UnicodeDecodeError as error:
        raise StreamError(
            "not UTF-8", where=WHERE, offset=offset + error.start, value=text[error.start]
        ) from None
    except ValueError as error:  # a number of thousands of digits, or NaN
        raise StreamError(
            f"a number that cannot be: {error}", where=WHERE, offset=offset, value=str(error)
        ) from None


def _kept(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose repeated members, if they are a description's, are a list of descriptions."""
    told = dict(pairs)
    if len(told) == len(pairs):
        return told
    elements: list[dict[str, Any]] = []
    for key, value in pairs:
        if key in DESCRIBED:
            if not elements or key in elements[-1]:
                elements.append({})
            elements[-1][key] = value
    if len(elements) <= 1:
        return told
    return {key: value for key, value in told.items() if key not in DESCRIBED} | {ELEMENTS: elements}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _bound(text: bytes, offset: int, limits: StreamLimits) -> None:
    """Depth and number of values, told from the brackets and commas: json.loads itself would recurse and
    allocate."""
    if _is_within(text, limits):
        return
    depth = values = 0
    for token in _tokens(text):
        byte = text[token]
        if byte in b"[{":
            depth += 1
            values += 1
            if depth > limits.vmdesc_depth:
                raise LimitExceeded(
                    f"nested deeper than {limits.vmdesc_depth}",
                    where=WHERE,
                    offset=offset + token,
                    value=depth,
                )
        elif byte in b"]}":
            depth -= 1
        else:
            values += 1
        if values > limits.vmdesc_values:
            raise LimitExceeded(
                f"more than {limits.vmdesc_values} values", where=WHERE, offset=offset + token, value=values
            )


def _is_within(text: bytes, limits: StreamLimits) -> bool:
    """Whether brackets and commas are as those of an honest text: the primary's VM stands still meanwhile, so
    in a few passes at memory speed. What is not is gone through one by one, for its offset."""
    marks = text.translate(_TO_SQUARE, _NOT_MARKS)
    if b"\\" in marks:
        return False
    # Two quotes with nothing between them: whether they are one string or the seam of two, what is inside
    # strings and what is not stays the same without them.
    marks = _STRINGS.sub(b"", marks.replace(b'""', b""))
    nested = marks.replace(b",", b"")
    if len(marks) - len(nested) + nested.count(b"[") > limits.vmdesc_values:
        return False
    for _ in range(limits.vmdesc_depth):
        nested = nested.replace(b"[]", b"")
    return not nested


def _tokens(text: bytes) -> Iterator[int]:
    """Offsets of brackets and commas outside strings."""
    for match in _TOKENS.finditer(text):
        if text[match.start()] != _QUOTE:
            yield match.start()
