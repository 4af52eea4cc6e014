"""``colo inspect`` on streams of other targets and machines, on files around a stream, and on what is broken."""

from __future__ import annotations

import argparse
import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from colo._fast.receive.buffers import ReadBuffer
from colo.cli.inspect import command as inspect
from colo.errors import StorageError, StreamError
from colo.stream import LiveSection, StreamReader

VECTORS = Path(__file__).resolve().parents[2] / "vectors"
OTHERS = sorted(path.name.removesuffix(".stream.xz") for path in (VECTORS / "inspect").glob("*.stream.xz"))


def vector(name):
    folder = VECTORS / "inspect" if name in OTHERS else VECTORS
    return lzma.decompress((folder / f"{name}.stream.xz").read_bytes())


@pytest.fixture
def look(tmp_path, capsys):
    """Inspect these bytes: exit code, the JSON, standard error."""

    def make(data, *arguments):
        path = tmp_path / "stream"
        path.write_bytes(data)
        code = run(str(path), "--json", *arguments)
        captured = capsys.readouterr()
        return code, json.loads(captured.out), captured.err

    return make


def run(*arguments):
    parser = argparse.ArgumentParser()
    inspect.add_arguments(parser)
    parsed = parser.parse_args(arguments)
    return parsed.run(parsed)


def pages(found):
    return {b["name"]: b["zero_pages"] + b["normal_pages"] for b in found["ram_blocks"]}


@pytest.mark.parametrize("name", OTHERS)
def test_every_captured_stream_is_read_to_its_end(name, look):
    code, found, err = look(vector(name))
    assert (code, err) == (0, "")
    assert found["error"] is None
    assert found["errors"] == []
    assert found["devices"]
    assert found["vmdesc"]["devices"] == len(found["devices"])
    assert found["trailing_bytes"] == 0
    assert not any("fields_error" in device for device in found["devices"])
    page_bytes = found["page_bytes"]
    for block in found["ram_blocks"]:
        assert block["zero_pages"] + block["normal_pages"] == block["used_length"] // page_bytes


@pytest.mark.parametrize(("name", "page_bytes"), [("7.2-mps2", 1024), ("7.2-virt-2.6", 1024), ("7.2-virt", 4096)])
@pytest.mark.parametrize("way", ["file", "pipe", "no vmdesc"])
def test_the_page_size_is_known_from_the_file_and_from_a_pipe(name, page_bytes, way, look, tmp_path):
    data = vector(name)
    if way == "pipe":
        (tmp_path / "s").write_bytes(data)
        shell = f"cat {tmp_path / 's'} | {sys.executable} -m colo inspect --json -"
        found = json.loads(subprocess.run(["sh", "-c", shell], capture_output=True, check=True).stdout)
    elif way == "file":
        _, found, _ = look(data)
    else:
        whole = look(data)[1]
        code, found, _ = look(data[: whole["vmdesc"]["offset"] - 5])
        assert code == 0
        assert found["vmdesc"] is None
    assert found["page_bytes"] == page_bytes
    assert all(pages(found).values())


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("7.2-s390", "s390-storage_attributes"), ("7.2-pseries", "spapr/htab"), ("7.2-dirty-bitmap", "dirty-bitmap"),
    ],
)  # fmt: skip
def test_live_sections_beside_ram_are_named_and_passed_over(name, sections, look, capsys, tmp_path):
    _, found, _ = look(vector(name))
    passed = [row for row in found["sections"] if not row["served"]]
    assert {row["name"] for row in passed} == {sections}
    assert passed[0]["type"] == "START"
    assert passed[-1]["type"] == "END"
    run(str(tmp_path / "stream"), "--no-fields")
    assert "passed over" in capsys.readouterr().out


def test_an_advise_without_payload_is_dirty_bitmaps(look, capsys, tmp_path):
    _, found, _ = look(vector("7.2-dirty-bitmap"))
    assert [(c["command"], c["meaning"]) for c in found["commands"]] == [("POSTCOPY_ADVISE", "dirty-bitmaps")]
    run(str(tmp_path / "stream"), "--no-fields")
    assert "POSTCOPY_ADVISE (dirty-bitmaps)" in capsys.readouterr().out


def test_mapped_ram_counts_the_pages_in_the_file(look):
    for name in ("10.0-mapped-ram", "11.1-mapped-ram", "11.1-mapped-ram-multifd"):
        _, found, _ = look(vector(name))
        assert found["configuration"]["capabilities"] == ["mapped-ram"]
        blocks = {block["name"]: block for block in found["ram_blocks"]}
        assert blocks["microvm.ram"]["zero_pages"] == 256
        assert blocks["/rom@etc/acpi/rsdp"]["normal_pages"] == 1
        assert all(block["pages_offset"] % (1 << 20) == 0 for block in blocks.values())


def test_mapped_ram_behind_a_header_needs_the_whole_file(look):
    code, found, err = look(b"LibvirtQemudSave" + bytes(76) + vector("11.1-mapped-ram"))
    assert code == 6
    assert "give the whole file" in err
    assert found["configuration"]


def test_a_stream_without_footers_is_read(look):
    _, found, _ = look(vector("7.2-pc-2.3"))
    assert found["configuration"] is None
    assert any("no footers" in note for note in found["notes"])
    assert found["end"] + 1 + 5 == found["vmdesc"]["offset"]


@pytest.mark.parametrize("name", OTHERS)
def test_a_session_refuses_by_name_what_it_cannot_serve(name):
    data = vector(name)
    if name == "7.2-virt":
        return  # 4096, as it states
    says = {
        "7.2-mps2": "smaller than 4096", "7.2-virt-2.6": "pages are not of 4096 bytes", "7.2-s390": "s390-storage_attributes",
        "7.2-pseries": "spapr/htab", "7.2-dirty-bitmap": "dirty-bitmaps off", "7.2-pc-2.3": "no footers",
        "7.2-snapshot": "qcow2 image",
    }.get(name, "mapped-ram")  # fmt: skip
    from colo._fast.kernels.ramblock import RamBlock
    from colo._fast.receive.pagedecoder import EOS, PageDecoder
    from colo._fast.receive.staging import Staging
    from colo.stream import parse_mem_size

    buf = ReadBuffer.from_bytes(data)
    decoder = PageDecoder(Staging(), immediate=True)

    def consume():
        for item in StreamReader(buf):
            if isinstance(item, LiveSection):
                while (total := decoder.decode(buf)) != EOS:
                    decoder.set_blocks([RamBlock(i.idstr, i.used_length) for i in parse_mem_size(buf, total)])

    with pytest.raises(StreamError, match=says):
        consume()


class TestAround:
    @pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress], ids=["gzip", "bzip2", "xz"])
    def test_compressed_streams(self, compress, look):
        code, found, _ = look(compress(vector("7.2-pc")))
        assert code == 0
        assert found["file"][0]["kind"] in ("gzip", "bzip2", "xz")
        assert found["bytes"] == len(vector("7.2-pc"))
        assert len(found["devices"]) == found["vmdesc"]["devices"]

    def test_zstd_and_lzop_are_refused_with_the_command(self, look, monkeypatch):
        from colo.survey import envelope

        monkeypatch.setattr(envelope, "_zstd", lambda: None)
        for start, name in ((b"\x28\xb5\x2f\xfd", "zstd"), (b"\x89LZO\0\r\n\x1a\n", "lzop")):
            code, _, err = look(start + bytes(50))
            assert code == 6
            assert f"{name} -dc FILE | colo inspect -" in err

    def test_damaged_compression_is_the_cause_that_is_told(self, look):
        code, found, err = look(gzip.compress(vector("7.2-pc"))[:-3000])
        assert code == 6
        assert "the gzip data are damaged" in err
        assert found["ram_blocks"]

    @pytest.mark.parametrize("kind", [0, 1])
    def test_libvirts_files(self, kind, look):
        stream = vector("7.2-pc")
        inner = gzip.compress(stream) if kind else stream
        xml = b"<domain><name>vm</name></domain>\0"
        numbers = b"".join(n.to_bytes(4, "little") for n in (2, len(xml), 1, kind, 0))
        head = b"LibvirtQemudSave" + numbers + bytes(56) + xml
        code, found, _ = look(head + inner)
        assert code == 0
        assert found["file"][0]["domain"] == "vm"
        assert found["header"]["offset"] == (0 if kind else len(head))
        assert len(found["devices"]) == found["vmdesc"]["devices"]

    def test_a_snapshot_is_chosen_by_name_or_id(self, look):
        image = vector("7.2-snapshot")
        for name in ("snap", "1"):
            code, found, _ = look(image, "--snapshot", name)
            assert code == 0
            assert found["configuration"]["machine"] == "pc-i440fx-7.2"
        code, _, err = look(image, "--snapshot", "other")
        assert code == 6
        assert "no snapshot 'other'" in err
        code, _, err = look(vector("7.2-pc"), "--snapshot", "snap")
        assert code == 6
        assert "is for qcow2 images" in err

    def test_an_image_without_snapshots_says_what_makes_one(self, look):
        image = bytearray(vector("7.2-snapshot"))
        image[60:64] = bytes(4)
        code, _, err = look(bytes(image))
        assert code == 6
        assert "savevm" in err

    def test_nested_wrappings_are_bounded(self, look):
        data = vector("7.2-none")
        for _ in range(6):
            data = gzip.compress(data)
        code, _, err = look(data)
        assert code == 6
        assert "gzip" in err


class TestBroken:
    def test_one_device_in_error_hides_no_other(self, look):
        data = vector("7.2-pc")
        _, good, _ = look(data)
        rtc = next(device for device in good["devices"] if device["name"] == "mc146818rtc")
        at = rtc["offset"] + rtc["length_bytes"]
        assert data[at] == 0x7E
        broken = data[: at + 1] + b"\0\0\0\x63" + data[at + 5 :]
        code, found, err = look(broken)
        assert code == 6
        assert [d["name"] for d in found["devices"]] == [d["name"] for d in good["devices"]]
        assert [d["name"] for d in found["devices"] if "error" in d] == ["mc146818rtc"]
        assert "footer of section 99" in err
        assert sum("fields" in d for d in found["devices"]) == len(good["devices"]) - 1

    def test_bytes_that_are_lost_in_ram_do_not_hide_the_devices(self, look):
        data = vector("7.2-pc")
        at = data.index(b"\x06pc.ram", 300)
        code, found, err = look(data[:at] + data[at + 3 :])
        assert code == 6
        assert "byte" in err
        assert len(found["devices"]) == found["vmdesc"]["devices"]
        assert any("error" in row for row in found["sections"])

    def test_every_error_is_shown_once_in_lines(self, look, capsys, tmp_path):
        data = vector("7.2-pc")
        look(data.replace(b"\x7e\0\0\0\2\2\0\0\0\2", b"\x7e\0\0\0\x09\2\0\0\0\2", 1))
        assert run(str(tmp_path / "stream"), "--no-fields") == 6
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error")]
        assert len(lines) == 1


def colo(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "colo", "inspect", *arguments], capture_output=True, text=True, **options)


class TestNoTraceback:
    @pytest.fixture
    def stream(self, tmp_path):
        path = tmp_path / "s"
        path.write_bytes(vector("7.2-pc"))
        return str(path)

    def test_a_full_disk(self, stream):
        for form in ("--json", "--no-fields"):
            with open("/dev/full", "w") as full:
                done = subprocess.run(
                    [sys.executable, "-m", "colo", "inspect", form, stream], stdout=full, stderr=subprocess.PIPE, text=True
                )
            assert done.returncode == 8
            assert done.stderr == (
                "colo inspect: standard output: No space left on device: the answer is not whole\n"
            )

    def test_a_closed_standard_input_and_output(self, stream):
        shell = f"{sys.executable} -m colo inspect"
        done = subprocess.run(["sh", "-c", f"{shell} - <&-"], capture_output=True, text=True)
        assert done.returncode == 6
        assert "standard input is closed" in done.stderr
        assert "Traceback" not in done.stderr
        done = subprocess.run(["sh", "-c", f"{shell} {stream} >&-"], stderr=subprocess.PIPE, text=True)
        assert done.returncode == 8
        assert "Traceback" not in done.stderr

    def test_a_name_that_the_terminal_has_no_letters_for(self, tmp_path):
        data = vector("7.2-pc")
        path = tmp_path / "s"
        path.write_bytes(data.replace(b"\x06pc.ram", b"\x06" + "ü.ram".encode()))
        done = colo("--no-fields", str(path), env={**os.environ, "PYTHONIOENCODING": "ascii"})
        assert done.returncode == 0
        assert "\\xfc.ram" in done.stdout
        assert done.stderr == ""

    @pytest.mark.parametrize("path", ["/", "/nonexistent", "\0"])
    def test_what_is_no_file(self, path):
        with pytest.raises(StreamError):
            run(path)

    def test_a_reader_that_leaves(self, stream):
        done = subprocess.run(
            ["bash", "-c", f"{sys.executable} -m colo inspect {stream} | head -1; exit ${{PIPESTATUS[0]}}"],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.stderr == ""

    def test_a_stream_that_goes_on_for_ever_is_let_go(self, tmp_path):
        """The feeding thread ends with the error: nothing hangs."""
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)

        def write():
            with open(fifo, "wb") as out:
                out.write(gzip.compress(b"QEVM\0\0\0\3" + b"\x55" * (1 << 20)))

        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        done = colo(str(fifo), timeout=60)
        assert done.returncode == 6
        thread.join()


def test_storage_errors_have_their_exit_code():
    from colo.cli import exit_code

    assert exit_code(StorageError("x")) == 8
