"""``colo inspect``: what is in a migration stream, or in a captured COLO channel."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from colo.cli import exit_code
from colo.cli.inspect.inspected_file import examine
from colo.cli.terminal.standard_output import say_error, whole_output
from colo.text import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's description and arguments."""
    parser.description = (
        "Shows a migration stream (a file, or - for standard input) as QEMU writes it with `migrate exec:cat>FILE` or "
        "`migrate file:FILE`, mapped-ram too. What a COLO primary sent, checkpoints and all, is understood, and so are "
        "files of `virsh save`, gzip, bzip2 and xz, and the internal snapshots of a qcow2 image.")
    parser.add_argument("file", metavar="FILE|-")
    parser.add_argument("--json", action="store_true", help="JSON, with all fields")
    parser.add_argument(
        "--fields",
        action=argparse.BooleanOptionalAction,
        help="show the fields of devices (default: not on a terminal, unless --device is given)",
    )
    parser.add_argument("--device", metavar="NAME", help="only devices whose name contains NAME")
    parser.add_argument(
        "--snapshot", metavar="NAME", help="of a qcow2 image: the snapshot of this name or id (needed if it has several)"
    )
    parser.add_argument(
        "--max-ram",
        type=int,
        default=1 << 40,
        metavar="BYTES",
        help="refuse streams that announce more (1 TiB)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Read the stream, show what was found; the exit code tells of an error in it, which goes to stderr."""
    found, error = examine(
        arguments.file, max_ram_bytes=arguments.max_ram, device=arguments.device or "", snapshot=arguments.snapshot
    )
    with whole_output():
        if arguments.json:
            json.dump(found, sys.stdout, indent=2)
            print()
        else:
            console = Console(highlight=False)
            fields = arguments.fields
            if fields is None:
                fields = not console.is_terminal or arguments.device is not None
            (_show_tables if console.is_terminal else _show_lines)(found, fields, console)
    if error is not None:
        say_error(f"colo inspect: {error}")
        return exit_code(error)
    return 0


def _show_lines(found: dict[str, Any], fields: bool, console: Console) -> None:
    """One line per thing, made for grep: kind, offset, then words."""
    for kind, offset, words in _lines(found, fields):
        place = "" if offset is None else f"{offset:#x}"
        print(f"{kind:<13} {place:>10}  {printable(words)}")


def _lines(found: dict[str, Any], fields: bool) -> Iterator[tuple[str, int | None, str]]:
    for layer in found["file"]:
        yield "file", layer["offset"], layer["text"]
    if found["header"]:
        yield "header", found["header"]["offset"], f"version {found['header']['version']}"
    config = found["configuration"]
    if config:
        yield "configuration", config["offset"], _configuration_words(config)
    for command in found["commands"]:
        yield "command", command["offset"], _command_words(command)
    for block in found["ram_blocks"]:
        yield "block", None, _block_words(block)
    for section in found["sections"]:
        yield "section", section["offset"], _section_words(section)
        if "error" in section:
            yield "error", section["offset"], section["error"]
    for packaged in found.get("packaged", []):
        yield "packaged", packaged["offset"], f"{packaged['length_bytes']} bytes"
        for command in packaged["commands"]:
            yield "packaged", None, f"command {_command_words(command)}"
        for device in packaged["devices"]:
            yield "packaged", None, f"device {_device_words(device)}"
    for device in found["devices"]:
        yield "device", device["offset"], _device_words(device)
        if fields:
            for field in device.get("fields", []):
                yield "field", device["offset"] + field["offset"], f"{device['name']}  {_field_words(field)}"
        for kind in ("error", "fields_error"):
            if kind in device:
                yield "error", device["offset"], device[kind]
    if "end" in found:
        yield "end", found["end"], "ambiguous device sections" if found.get("ambiguous") else ""
    if found["vmdesc"]:
        vmdesc = found["vmdesc"]
        yield "vmdesc", vmdesc["offset"], f"{vmdesc['length_bytes']} bytes, {vmdesc['devices']} devices"
    for checkpoint in found["checkpoints"]:
        yield "checkpoint", checkpoint["offset"], _checkpoint_words(checkpoint)
    for note in found["notes"]:
        yield "note", None, note
    told = {row.get("error") for kind in ("sections", "devices") for row in found[kind]}
    for error in found["errors"]:
        if error["message"] not in told and (found["error"] is None or error["message"] != found["error"]["message"]):
            yield "error", error["offset"], error["message"]
    if found["trailing_bytes"]:
        yield "trailing", found["bytes"] - found["trailing_bytes"], f"{found['trailing_bytes']} bytes"
    if found["error"] and found["error"]["message"] not in told:
        yield "error", found["error"]["offset"], found["error"]["message"]
    if not found["error"] or found["errors"]:
        yield "total", found["bytes"], f"{found['bytes']} bytes"


def _configuration_words(config: dict[str, Any]) -> str:
    words = f"machine {config['machine']}"
    if config["capabilities"]:
        words += f", capabilities {' '.join(config['capabilities'])}"
    if config["page_bits"] is not None:
        words += f", target pages of 2^{config['page_bits']} bytes"
    return words + (f", uuid {config['uuid']}" if config["uuid"] else "")


def _command_words(command: dict[str, Any]) -> str:
    meaning = f" ({command['meaning']})" if command["meaning"] else ""
    return f"{command['command']}{meaning} {command['payload']}".rstrip()


def _page_words(row: dict[str, Any]) -> str:
    words = [f"{row[name]} {label}" for name, label in _PAGE_KINDS if row.get(name)]
    return ", ".join(words) or "no pages"


def _block_words(block: dict[str, Any]) -> str:
    extra = "".join(
        f", {name.replace('_', ' ')} {block[name]:#x}"
        for name in ("page_size", "address", "bitmap_offset", "pages_offset")
        if block.get(name) is not None
    )
    return f"{block['name']}  {block['used_length']} bytes{extra}: {_page_words(block)}"


def _section_words(section: dict[str, Any]) -> str:
    return (
        f"{section['type']} of {section['id']} '{section['name']}' version {section['version']}, "
        f"{section['length_bytes']} bytes: {_page_words(section) if section['served'] else 'passed over'}"
    )


def _device_words(device: dict[str, Any]) -> str:
    fields = f", {len(device['fields'])} fields" if "fields" in device else ""
    return (
        f"{device['name']}  instance {device['instance']} version {device['version']} "
        f"section {device['id']}, {device['length_bytes']} bytes{fields}"
    )


def _field_words(field: dict[str, Any]) -> str:
    many = f" x {field['count']}" if field["count"] != 1 else ""
    value = "" if field["value"] is None else f" = {_value_words(field['value'])}"
    return f"{field['path']}  {field['type']}, {field['size']} bytes{many}{value}"


def _value_words(value: int | list[int] | str) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _checkpoint_words(checkpoint: dict[str, Any]) -> str:
    if "length_bytes" not in checkpoint:
        return f"{checkpoint['number']}: not whole"
    return (
        f"{checkpoint['number']}: {checkpoint['length_bytes']} bytes, {_page_words(checkpoint)}, "
        f"{checkpoint['device_state_bytes']} bytes of device state in {checkpoint['devices']} sections"
    )


_PAGE_KINDS = (
    ("normal_pages", "raw"),
    ("zero_pages", "zero"),
    ("xbzrle_pages", "xbzrle"),
    ("compressed_pages", "compressed"),
)


def _show_tables(found: dict[str, Any], fields: bool, console: Console) -> None:
    """For people: a table for each kind of thing."""
    broken = {kind: [row for row in found[kind] if "error" in row] for kind in ("sections", "devices")}
    for kind, offset, words in _lines({**found, "ram_blocks": [], "checkpoints": [], **broken}, False):
        console.print(f"[bold]{kind}[/]" + ("" if offset is None else f" at {offset:#x}"), end=" ")
        console.print(printable(words), markup=False)
    pages = [label for _, label in _PAGE_KINDS]
    _table(
        console,
        "RAM blocks",
        ("block", "bytes", "page size", "address", *pages),
        [
            (
                block["name"],
                block["used_length"],
                _hex(block["page_size"]),
                _hex(block["address"]),
                *(block.get(name, 0) for name, _ in _PAGE_KINDS),
            )
            for block in found["ram_blocks"]
        ],
    )
    _table(
        console,
        "live sections",
        ("offset", "type", "id", "name", "version", "bytes", *pages),
        [
            (
                _hex(row["offset"]),
                row["type"],
                row["id"],
                row["name"],
                row["version"],
                row["length_bytes"],
                *(row.get(name, 0) for name, _ in _PAGE_KINDS),
            )
            for row in found["sections"]
        ],
    )
    _table(
        console,
        "devices",
        ("offset", "section", "device", "instance", "version", "bytes", "fields"),
        [
            (
                _hex(row["offset"]),
                row["id"],
                row["name"],
                row["instance"],
                row["version"],
                row["length_bytes"],
                len(row["fields"]) if "fields" in row else None,
            )
            for row in found["devices"]
        ],
    )
    if fields:
        for device in found["devices"]:
            _table(
                console,
                f"{device['name']} (instance {device['instance']})",
                ("offset", "field", "type", "bytes", "count", "value"),
                [
                    (
                        _hex(field["offset"]),
                        field["path"],
                        field["type"],
                        field["size"],
                        field["count"],
                        None if field["value"] is None else _value_words(field["value"]),
                    )
                    for field in device.get("fields", [])
                ],
            )
    _table(
        console,
        "checkpoints",
        ("checkpoint", "offset", "bytes", *pages, "device state", "devices"),
        [
            (
                row["number"],
                _hex(row["offset"]),
                row.get("length_bytes"),
                *(row.get(name) for name, _ in _PAGE_KINDS),
                row.get("device_state_bytes"),
                row.get("devices"),
            )
            for row in found["checkpoints"]
        ],
    )
    if found["devices"] and not fields and found["vmdesc"]:
        console.print("--device NAME or --fields shows the fields of the devices", markup=False)


def _hex(value: int | None) -> str | None:
    return None if value is None else f"{value:#x}"


def _table(console: Console, title: str, headings: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    if not rows:
        return
    table = Table(title=Text(printable(title)), title_justify="left", expand=False)
    for i, heading in enumerate(headings):
        numbers = all(row[i] is None or isinstance(row[i], int) for row in rows)
        table.add_column(heading, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*("–" if cell is None else Text(printable(str(cell))) for cell in row))
    console.print(table)
