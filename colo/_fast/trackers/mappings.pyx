"""Who else can change a range of memory, by what /proc/PID/maps says of it.

A tracker that goes by one process's page tables sees what is written through them, by whoever: threads,
system calls, ptrace, KVM guests. It does not see what reaches the pages another way. Private anonymous
memory has no other way; a shared mapping has (children after a fork, other mappings of the file, write() to
it, holes punched in it), and so has a private mapping of a file, in every page that was not written yet.
"""
import os

from colo.errors import TrackerError

DELETED_HUGE = "/anon_hugepage (deleted)"
"""The kernel's own file behind private anonymous memory of hugetlb pages: nobody can open it."""


def seen_by_others(pid: int, low: int, high: int) -> str | None:
    """None when ``[low, high)`` of process ``pid`` (0: this one) is changed through its page tables only;
    otherwise which mapping it is that others can change, and how. What is not mapped is left out.

    TrackerError when the process's mappings cannot be read.
    """
    where = f"/proc/{pid or 'self'}/maps"
    try:
        with open(where, encoding="utf-8", errors="backslashreplace") as maps:
            for line in maps:
                fields = line.rstrip("\n").split(maxsplit=5)
                begin, _, end = fields[0].partition("-")
                if int(end, 16) <= low:
                    continue
                if int(begin, 16) >= high:
                    return None
                path = fields[5] if len(fields) == 6 else ""
                if fields[1][3] == "s":
                    return (f"{int(begin, 16):#x} is a shared mapping ({printable(path) or 'anonymous'}): other mappings "
                            "of it, forked children, write() to it and holes punched in it go unseen")
                if int(fields[4]) and not (path == DELETED_HUGE and fields[3].startswith("00:")):
                    return (f"{int(begin, 16):#x} is a private mapping of a file ({printable(path)}): what is written to the "
                            "file shows in pages not written here, unseen")
    except OSError as error:
        raise TrackerError(f"{where} cannot be read ({os.strerror(error.errno)}): whether others can change the "
                           "memory is unknown") from error
    return None


def printable(path):
    shown = "".join(letter if letter.isprintable() else "?" for letter in path)
    return shown if len(shown) <= 80 else shown[:77] + "..."
