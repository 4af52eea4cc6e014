"""Arguments that more than one command takes."""

from __future__ import annotations

import argparse
import re

SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def byte_size(text: str) -> int:
    """``16G``, ``512M``, ``4096``."""
    found = re.fullmatch(r"(\d+)([KMGT]?)i?B?", text.strip(), re.IGNORECASE)
    if not found or int(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: a number with K, M, G or T")
    return int(found[1]) * SUFFIXES[found[2].upper()]


def add_allow_uid_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """Register ``--allow-uid``."""
    parser.add_argument("--allow-uid", type=_uid, action="append", default=[], metavar="UID",
                        help=f"another user of this machine, besides root and your own, who may {what} (any number of times)")


def _uid(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 0xFFFF_FFFF):
        raise argparse.ArgumentTypeError(f"{text!r} is no user's number: `id -u NAME` tells it")
    return int(text)
