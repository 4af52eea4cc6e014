"""The vmdesc: bounded before it is parsed, checked against its schema, sizes summed as QEMU sends them."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colo.errors import LimitExceeded, StreamError
from colo.stream import StreamLimits, parse_vmdesc
from colo.vmstate import parse_vmdesc as plain_vmdesc


def device(**more):
    return {"name": "a", "instance_id": 0, "version": 1, "fields": [], **more}


def parse(*devices):
    return parse_vmdesc(json.dumps({"page_size": 4096, "devices": devices}).encode())


def field(size, **more):
    return {"name": "f", "type": "uint8", "size": size, **more}


def test_sizes_are_summed_over_arrays_structs_and_subsections():
    state = (
        parse(
            device(
                fields=[field(4), field(2, array_len=5), field(7, struct={"fields": [field(3), field(4)]})],
                subsections=[
                    {
                        "vmsd_name": "a/sub",
                        "version": 1,
                        "fields": [field(8)],
                        "subsections": [{"vmsd_name": "a/sub/é", "version": 1, "fields": []}],
                    }
                ],
            )
        )
        .devices[0]
        .state
    )
    assert state.size_bytes == 4 + 10 + 7 + (6 + 5 + 8 + (6 + 8))
    assert state.exact


def test_arrays_whose_elements_may_differ_are_not_exact():
    scalars = {"vmsd_name": "s", "fields": [field(4)]}
    varying = {"vmsd_name": "s", "fields": [field(4, array_len=3)]}
    assert parse(device(fields=[field(4, array_len=2, struct=scalars)])).devices[0].state.exact
    assert not parse(device(fields=[field(12, array_len=2, struct=varying)])).devices[0].state.exact
    assert parse(device(fields=[field(12, struct=varying)])).devices[0].state.exact


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"devices": [}', "not JSON"),
        (b'{"devices": [], "page_size": NaN}', "NaN"),
        (b'{"devices": [], "page_size": ' + b"9" * 5000 + b"}", "number"),
        (b'{"devices": "\xff"}', "not UTF-8"),
        (b"[]", r"\$ is not an object"),
        (b"{}", r"\$.devices is not an array: None"),
        (b'{"devices": [1]}', r"\$.devices\[0\] is not an object"),
        (b'{"devices": [{"name": 1}]}', r"\$.devices\[0\].name is not a name: 1"),
        (b'{"devices": [{"name": "a\\u0000"}]}', "not a name"),
        (b'{"devices": [{"name": "a", "instance_id": -1}]}', "instance_id is not an integer"),
        (b'{"devices": [{"name": "a", "instance_id": true}]}', "instance_id is not an integer"),
        (b'{"devices": [{"name": "a", "instance_id": 0, "fields": {}}]}', "fields is not an array"),
        (
            b'{"devices": [{"name": "a", "instance_id": 0, "fields": [{"name": "f", "size": "1"}]}]}',
            "size is not an",
        ),
        (
            b'{"devices": [{"name": "a", "instance_id": 0, "fields": [{"name": "f", "size": 1e400}]}]}',
            "size is not an",
        ),
    ],
)
def test_refusals_say_where(text, says):
    with pytest.raises(StreamError, match=says) as caught:
        parse_vmdesc(text, offset=1000)
    assert caught.value.offset >= 1000


def test_the_offset_of_a_json_error_counts_bytes():
    text = '{"é": [}'.encode()
    with pytest.raises(StreamError) as caught:
        parse_vmdesc(text, offset=10)
    assert caught.value.offset == 10 + text.index(b"}")


def test_depth_is_bounded():
    def nested(depth):
        return b'{"devices": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"

    with pytest.raises(StreamError, match="not an object"):
        parse_vmdesc(nested(32))
    with pytest.raises(LimitExceeded, match="deeper than 32") as caught:
        parse_vmdesc(nested(33))
    assert caught.value.offset == len(b'{"devices": ') + 31
    with pytest.raises(LimitExceeded, match="deeper than 32"):
        parse_vmdesc(b"[" * 1_000_000)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("behind", ["[" * 100_000, "[]," * 600_000 + '"\u0122"]'])
def test_other_encodings_do_not_pass_by_the_bounds(encoding, behind):
    """The parser would guess them; the brackets were counted as those of UTF-8."""
    with pytest.raises(StreamError):
        parse_vmdesc(('["\u0122", ' + behind).encode(encoding))


def test_what_the_fuzzer_found_is_no_text():
    with pytest.raises(StreamError):
        parse_vmdesc(bytes.fromhex("22003a202272756e7374617465222c202274792022627566666572222c205d7d5d2000000000" "0000007d"))


def test_an_array_that_begins_with_a_null_pointer_is_not_exact():
    """As s390_css has one: the struct shown has no fields, and its element one byte."""
    field = {"name": "css", "type": "struct", "size": 1, "array_len": 256, "struct": {}}
    vmdesc = parse_vmdesc(json.dumps({"devices": [{"name": "a", "instance_id": 0, "fields": [field]}]}).encode())
    assert not vmdesc.devices[0].state.exact


def test_brackets_in_strings_do_not_count():
    parse(device(name="[" * 40 + '\\"{'))


def test_values_are_bounded_before_they_are_made():
    limits = StreamLimits(vmdesc_values=1000)
    with pytest.raises(LimitExceeded, match="1000 values"):
        parse_vmdesc(b'{"devices": [' + b"0," * 1001 + b"0]}", limits=limits)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "utf-32-le", "utf-32-be", "utf-8-sig"])
def test_only_utf_8_is_read(encoding):
    """The limits are told from the bytes: in another encoding (json.loads takes those for granted) they would not hold."""
    limits = StreamLimits(vmdesc_values=1000)
    for text in ('["\u0122", ' + "[" * 100, '["\u0122", ' + "[]," * 2000 + '"\u0122"]', '{"devices": []}'):
        with pytest.raises(StreamError):
            parse_vmdesc(text.encode(encoding), limits=limits)
        with pytest.raises(StreamError):
            plain_vmdesc(text.encode(encoding))


FOUND_BY_FUZZING = b'"\x00: "runstate", "ty "buffer", ]}] \x00\x00\x00\x00\x00\x00\x00}'


def test_an_encoding_that_is_guessed_from_nul_bytes_is_none():
    with pytest.raises(StreamError) as caught:
        parse_vmdesc(FOUND_BY_FUZZING)
    assert 0 <= (caught.value.offset or 0) <= len(FOUND_BY_FUZZING)


@pytest.mark.parametrize("text", ["\x1b[31m", "\x07", "\x9b31m", "a\nb", "\u202e", "\ud800"])
def test_what_could_steer_a_terminal_is_no_name_and_no_type(text):
    for key in ("name", "type"):
        with pytest.raises(StreamError) as caught:
            parse(device(fields=[field(1) | {key: text}]))
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", [b'"' * 200_001, b'\\"' * 100_000, b'"\\' * 100_000, b'"' + b"\\" * 200_000])
def test_strings_without_end_do_not_stall(text):
    started = time.process_time()
    with pytest.raises(StreamError):
        parse_vmdesc(text)
    assert time.process_time() - started < 5


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["name", "devices", "fields", "size", "instance_id", "struct", "subsections", "array_len"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
@settings(max_examples=200, deadline=None)
def test_any_json_is_parsed_or_refused(value):
    with contextlib.suppress(StreamError):
        parse_vmdesc(json.dumps(value).encode())
