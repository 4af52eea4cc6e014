"""``colo inspect`` on captured streams: what it shows, in which form, and how it tells of errors."""

from __future__ import annotations

import argparse
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest

from colo.cli.inspect import command as inspect
from colo.errors import StreamError

VECTORS = Path(__file__).resolve().parents[2] / "vectors"


@pytest.fixture
def stream(tmp_path):
    """The path of a captured stream, cut to ``size`` bytes or with ``edit`` applied."""

    def make(name, size=None, edit=None):
        data = lzma.decompress((VECTORS / f"{name}.stream.xz").read_bytes())
        path = tmp_path / name
        path.write_bytes(edit(data) if edit else data[:size])
        return str(path)

    return make


def run(*arguments):
    parser = argparse.ArgumentParser()
    inspect.add_arguments(parser)
    parsed = parser.parse_args(arguments)
    return parsed.run(parsed)


def test_json_holds_everything(stream, capsys):
    assert run(stream("7.2-pc"), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["configuration"]["machine"] == "pc-i440fx-7.2"
    assert found["error"] is None
    assert found["trailing_bytes"] == 0
    assert found["bytes"] == os.path.getsize(stream("7.2-pc"))
    blocks = {block["name"]: block for block in found["ram_blocks"]}
    assert blocks["pc.ram"]["used_length"] == 1 << 20
    assert blocks["pc.ram"]["zero_pages"] + blocks["pc.ram"]["normal_pages"] == 256
    assert sum(s["zero_pages"] for s in found["sections"]) == sum(b["zero_pages"] for b in blocks.values())
    assert [s["type"] for s in found["sections"]] == ["START", "PART", "END"]
    devices = {device["name"]: device for device in found["devices"]}
    fields = {field["path"]: field for field in devices["i8254"]["fields"]}
    assert fields["channels[2].count"]["value"] == 0x10000
    assert fields["channels[1].mode"]["value"] == 3
    assert not any("fields_error" in device for device in found["devices"])


@pytest.mark.parametrize(
    "name", sorted(path.name.removesuffix(".stream.xz") for path in VECTORS.glob("*.stream.xz"))
)
def test_fields_cover_each_device_and_subsections_are_where_the_vmdesc_has_them(name, stream, capsys):
    assert run(stream(name), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    for device in found["devices"]:
        assert "fields_error" not in device
        if device.get("fields"):
            last = max(field["offset"] + field["size"] * field["count"] for field in device["fields"])
            assert last == device["length_bytes"]
    assert any("<" in field["path"] for d in found["devices"] for field in d.get("fields", [])) or name in (
        "7.2-none",
        "7.2-pc-suppress-vmdesc",
    )


def test_a_colo_channel_shows_its_checkpoints(stream, capsys):
    assert run(stream("7.2-colo-xbzrle"), "--json") == 0
    checkpoints = json.loads(capsys.readouterr().out)["checkpoints"]
    assert [checkpoint["number"] for checkpoint in checkpoints] == [1, 2, 3]
    assert [checkpoint["xbzrle_pages"] for checkpoint in checkpoints] == [0, 1, 1]
    assert all(checkpoint["device_state_bytes"] > 10_000 for checkpoint in checkpoints)
    assert run(stream("7.2-colo")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("checkpoint") for line in lines) == 3


def test_plain_lines_in_a_pipe_have_fields_unless_told_otherwise(stream, capsys):
    run(stream("7.2-isapc"))
    lines = capsys.readouterr().out.splitlines()
    assert any(
        line.startswith("field") and "i8254  channels[0].mode  uint8, 1 bytes = 3" in line for line in lines
    )
    run(stream("7.2-isapc"), "--no-fields")
    lines = capsys.readouterr().out.splitlines()
    assert not any(line.startswith("field") for line in lines)
    assert sum(line.startswith("device") for line in lines) == 20
    run(stream("7.2-isapc"), "--device", "dma", "--no-fields")
    assert sum(line.startswith("device") for line in capsys.readouterr().out.splitlines()) == 2


def test_tables_on_a_terminal(stream, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    assert run(stream("7.2-pc")) == 0
    out = capsys.readouterr().out
    assert "┏" in out
    assert "RAM blocks" in out
    assert "channels" not in out
    assert run(stream("7.2-pc"), "--device", "i8254") == 0
    assert "channels[0].mode" in capsys.readouterr().out


def test_an_error_shows_what_came_before_and_where(stream, capsys):
    path = stream(
        "7.2-pc", edit=lambda data: data.replace(b"\x7e\0\0\0\2\2\0\0\0\2", b"\x7e\0\0\0\x09\2\0\0\0\2", 1)
    )
    assert run(path, "--json") == 6
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert "footer of section 9, expected one of section 2" in found["error"]["message"]
    assert found["error"]["offset"] > 0
    assert found["ram_blocks"]
    assert "footer of section 9" in captured.err
    assert run(path) == 6
    assert any(line.startswith("error") for line in capsys.readouterr().out.splitlines())


def test_a_cut_stream_is_told_with_its_offset(stream, capsys):
    assert run(stream("7.2-pc", size=5000)) == 6
    assert "at byte 5000" in capsys.readouterr().err
    assert run(stream("7.2-colo", size=150_000), "--json") == 6
    found = json.loads(capsys.readouterr().out)
    assert found["devices"]
    assert found["error"]["offset"] == 150_000


def test_ram_beyond_the_bound_is_refused_before_it_is_tracked(stream, capsys):
    assert run(stream("7.2-pc"), "--max-ram", "4096") == 6
    assert "--max-ram" in capsys.readouterr().err


def test_what_is_not_a_stream_and_what_is_not_there(tmp_path, capsys):
    path = tmp_path / "x"
    path.write_bytes(b"hello, world")
    assert run(str(path)) == 6
    assert "not the magic of a migration stream" in capsys.readouterr().err
    with pytest.raises(StreamError, match="No such file"):
        run(str(tmp_path / "missing"))


def test_standard_input_is_read(stream):
    path = Path(stream("7.2-none"))
    code = (
        "import argparse, sys; from colo.cli.inspect import command as inspect; p = argparse.ArgumentParser(); "
        "inspect.add_arguments(p); a = p.parse_args(['-']); sys.exit(a.run(a))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=path.read_bytes(), capture_output=True, check=True
    )
    assert b"globalstate" in done.stdout
