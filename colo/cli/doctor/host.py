"""What ``colo doctor`` finds about the machine's limits: control groups, and what a fence and an arbiter need."""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator

from colo.cli.doctor.findings import LIMITED, NO, OK, Finding
from colo.memory import host

GIB = 1 << 30
MEMORY_WANTED_BYTES = GIB
FENCE_LOCKED_BYTES = 64 << 20
"""A fence locks the memory of a small Python process."""
MCL_CURRENT, MCL_FUTURE = 1, 2


def probe_memory_limits() -> Iterator[Finding]:
    """The memory that there is for RAM images, by the machine and by the control group."""
    physical = host.physical_memory_bytes()
    limit = host.cgroup_limit()
    if limit is None or limit.limit_bytes >= physical:
        yield Finding("memory", "control group", OK, f"no limit below the machine's {physical / GIB:.1f} GiB")
        return
    text = f"{limit.limit_bytes / GIB:.1f} of the machine's {physical / GIB:.1f} GiB ({limit.file}): --max-ram's default"
    if limit.limit_bytes < MEMORY_WANTED_BYTES:
        advice = "raise the group's limit (systemd: MemoryMax=; docker: --memory): a VM's RAM and a checkpoint"
        yield Finding("memory", "control group", LIMITED, text, advice)
    else:
        yield Finding("memory", "control group", OK, text)


def probe_fence() -> Iterator[Finding]:
    """What the fence beside a protected QEMU may do: without one of these it still works, less surely."""
    yield _pidfd()
    yield _locked_memory()
    yield _real_time()


def _pidfd() -> Finding:
    try:
        fd = os.pidfd_open(os.getpid())
    except (AttributeError, OSError) as error:
        reason = "this Python has none" if isinstance(error, AttributeError) else os.strerror(error.errno or 0)
        return Finding(
            "fence", "pidfd", NO, f"no pidfd ({reason}): the VM's process cannot be held without doubt",
            "Linux 5.3 or later, and a container whose seccomp profile allows pidfd_open", essential=True,
        )  # fmt: skip
    try:
        signal.pidfd_send_signal(fd, 0)
    except OSError as error:
        return Finding(
            "fence", "pidfd", NO, f"no signal can be sent by one: {error.strerror}",
            "a container's seccomp profile may forbid pidfd_send_signal", essential=True,
        )  # fmt: skip
    finally:
        os.close(fd)
    return Finding("fence", "pidfd", OK, "works")


def _locked_memory() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    shown = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
    error = _tried_in_a_child(_lock_all)
    if not error:
        return Finding("fence", "locked memory", OK, f"a process may lock its memory (limit {shown})")
    advice = f"ulimit -l {FENCE_LOCKED_BYTES >> 10} (LimitMEMLOCK= of its unit): else the fence can be paged out"
    if hard != resource.RLIM_INFINITY and hard < FENCE_LOCKED_BYTES:
        advice += "; memlock in limits.conf raises the hard limit"
    return Finding("fence", "locked memory", LIMITED, f"refused ({os.strerror(error)}; limit {shown})", advice)


def _lock_all() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if libc.mlockall(MCL_CURRENT | MCL_FUTURE) else 0


def _real_time() -> Finding:
    error = _tried_in_a_child(_become_real_time)
    if not error:
        return Finding("fence", "real-time priority", OK, "SCHED_FIFO is allowed")
    return Finding(
        "fence", "real-time priority", LIMITED, f"SCHED_FIFO is refused ({os.strerror(error)})",
        "ulimit -r 20 (LimitRTPRIO=20 of its unit), or CAP_SYS_NICE: else a busy machine may delay it",
    )  # fmt: skip


def _become_real_time() -> int:
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError as error:
        return error.errno or errno.EPERM
    return 0


def _tried_in_a_child(attempt: Callable[[], int]) -> int:
    """The errno that ``attempt`` returns, 0 if it worked; in a child, so that nothing of this process stays changed."""
    child = os.fork()
    if child == 0:
        code = errno.EPERM
        try:
            code = attempt()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else errno.EINTR


def probe_etcd() -> Iterator[Finding]:
    """The client of ``etcd:`` is part of colo and speaks to the members' JSON gateway; TLS is Python's."""
    try:
        tls = importlib.import_module("ssl").OPENSSL_VERSION
    except ImportError:
        yield Finding(
            "arbiter", "etcd client", LIMITED, "http only: this Python was built without ssl", "a Python with ssl"
        )
    else:
        yield Finding("arbiter", "etcd client", OK, f"built in; https with {tls}")
    path = shutil.which("etcd")
    yield Finding("arbiter", "etcd", OK, f"{path} is here" if path else "none on this machine (needed on others only)")
