"""A share as a host sees it: a directory of another machine, mounted, that can hang as a file server that is out of reach does.

``python share.py REAL MOUNTED HANGS`` serves REAL at MOUNTED through the kernel's FUSE, until it is unmounted or killed. While the
file HANGS exists it takes no request: whoever asks waits, and only SIGKILL ends that. Nothing is cached, so two hosts' mounts of one
directory agree. What it serves is what an arbiter's directory needs: plain files, names, links, modes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

# linux/fuse.h
LOOKUP, FORGET, GETATTR, SETATTR, READLINK, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE, STATFS, RELEASE = (
    1, 2, 3, 4, 5, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)
FSYNC, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, FSYNCDIR, ACCESS, CREATE, INTERRUPT, BATCH_FORGET, RENAME2 = (
    20, 25, 26, 27, 28, 29, 30, 34, 35, 36, 42, 45)
IN_HEADER = struct.Struct("<IIQQIIIHH")
OUT_HEADER = struct.Struct("<IiQ")
ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
ENTRY_HEAD = struct.Struct("<QQQQII")
INIT_OUT = struct.Struct("<IIIIHHIIHHI7I")
BUFFER_BYTES = (1 << 20) + 4096
FATTR_MODE, FATTR_UID, FATTR_GID, FATTR_SIZE = 1, 2, 4, 8
ROOT_ID = 1


class Share:
    """Serves ``real`` on ``device``."""

    def __init__(self, real: str, device: int, hangs: Path) -> None:
        self.device = device
        self.hangs = hangs
        self.paths = {ROOT_ID: real}
        self.last_id = ROOT_ID
        self.answers: dict[int, Callable[[int, bytes], bytes]] = {
            LOOKUP: self.lookup, GETATTR: self.getattr, SETATTR: self.setattr, READLINK: self.readlink, MKDIR: self.mkdir,
            UNLINK: self.unlink, RMDIR: self.rmdir, RENAME: self.rename, RENAME2: self.rename2, LINK: self.link, OPEN: self.open,
            CREATE: self.create, READ: self.read, WRITE: self.write, STATFS: self.statfs, RELEASE: self.release,
            FSYNC: self.fsync, FLUSH: self.nothing, OPENDIR: self.open, READDIR: self.readdir, RELEASEDIR: self.release,
            FSYNCDIR: self.fsync, ACCESS: self.nothing, INIT: self.init,
        }

    def serve(self) -> None:
        """Until it is unmounted."""
        while True:
            if self.hangs.exists():  # what is not taken yet can be given up by who waits for it
                time.sleep(0.005)
                continue
            if not select.select([self.device], [], [], 0.02)[0]:
                continue
            try:
                request = os.read(self.device, BUFFER_BYTES)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                continue  # given up meanwhile
            length, kind, unique, node, *_ = IN_HEADER.unpack_from(request)
            if kind in (FORGET, BATCH_FORGET, INTERRUPT):
                continue
            answer, failed = b"", 0
            try:
                answer = self.answers[kind](node, request[IN_HEADER.size : length])
            except KeyError:
                failed = errno.ENOSYS
            except OSError as error:
                failed = error.errno or errno.EIO
            try:
                os.write(self.device, OUT_HEADER.pack(OUT_HEADER.size + len(answer), -failed, unique) + answer)
            except OSError:
                continue

    # -- names

    def child(self, node: int, name: bytes) -> str:
        return os.path.join(self.paths[node], os.fsdecode(name.split(b"\0")[0]))

    def entry(self, path: str) -> bytes:
        attributes = self.attributes(os.lstat(path))
        self.last_id += 1
        self.paths[self.last_id] = path
        return ENTRY_HEAD.pack(self.last_id, 0, 0, 0, 0, 0) + attributes

    def attributes(self, info: os.stat_result) -> bytes:
        times = [divmod(nanoseconds, 10**9) for nanoseconds in (info.st_atime_ns, info.st_mtime_ns, info.st_ctime_ns)]
        return ATTR.pack(
            info.st_ino, info.st_size, info.st_blocks, *(seconds for seconds, _ in times), *(rest for _, rest in times),
            info.st_mode, info.st_nlink, info.st_uid, info.st_gid, info.st_rdev, 4096, 0)

    def init(self, _: int, body: bytes) -> bytes:
        major, minor = struct.unpack_from("<II", body)
        return INIT_OUT.pack(major, min(minor, 31), 0, 0, 8, 8, 1 << 17, 1, 1, 0, 0, *[0] * 7)

    def lookup(self, node: int, body: bytes) -> bytes:
        return self.entry(self.child(node, body))

    def getattr(self, node: int, _: bytes) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + self.attributes(os.lstat(self.paths[node]))

    def setattr(self, node: int, body: bytes) -> bytes:
        valid, _, _, size = struct.unpack_from("<IIQQ", body)
        mode, _, uid, gid = struct.unpack_from("<IIII", body, 68)
        path = self.paths[node]
        if valid & FATTR_MODE:
            os.chmod(path, mode & 0o7777)
        if valid & (FATTR_UID | FATTR_GID):
            os.lchown(path, uid if valid & FATTR_UID else -1, gid if valid & FATTR_GID else -1)
        if valid & FATTR_SIZE:
            os.truncate(path, size)
        return self.getattr(node, b"")

    def readlink(self, node: int, _: bytes) -> bytes:
        return os.fsencode(os.readlink(self.paths[node]))

    def mkdir(self, node: int, body: bytes) -> bytes:
        mode, _ = struct.unpack_from("<II", body)
        path = self.child(node, body[8:])
        os.mkdir(path, mode & 0o7777)
        return self.entry(path)

    def unlink(self, node: int, body: bytes) -> bytes:
        os.unlink(self.child(node, body))
        return b""

    def rmdir(self, node: int, body: bytes) -> bytes:
        os.rmdir(self.child(node, body))
        return b""

    def rename(self, node: int, body: bytes) -> bytes:
        return self._rename(node, struct.unpack_from("<Q", body)[0], body[8:], 0)

    def rename2(self, node: int, body: bytes) -> bytes:
        target, flags, _ = struct.unpack_from("<QII", body)
        return self._rename(node, target, body[16:], flags)

    def _rename(self, node: int, target: int, names: bytes, flags: int) -> bytes:
        if flags:
            raise OSError(errno.EINVAL, "rename flags")
        old, new = names.split(b"\0")[:2]
        os.rename(self.child(node, old), self.child(target, new))
        return b""

    def link(self, node: int, body: bytes) -> bytes:
        [old] = struct.unpack_from("<Q", body)
        path = self.child(node, body[8:])
        os.link(self.paths[old], path, follow_symlinks=False)
        return self.entry(path)

    # -- open files

    def open(self, node: int, body: bytes) -> bytes:
        flags, _ = struct.unpack_from("<II", body)
        return struct.pack("<QII", os.open(self.paths[node], flags & ~os.O_NOFOLLOW | os.O_CLOEXEC), 1, 0)

    def create(self, node: int, body: bytes) -> bytes:
        flags, mode, _, _ = struct.unpack_from("<IIII", body)
        path = self.child(node, body[16:])
        handle = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, mode & 0o7777)
        return self.entry(path) + struct.pack("<QII", handle, 1, 0)

    def read(self, _: int, body: bytes) -> bytes:
        handle, offset, size = struct.unpack_from("<QQI", body)
        return os.pread(handle, size, offset)

    def write(self, _: int, body: bytes) -> bytes:
        handle, offset, size = struct.unpack_from("<QQI", body)
        return struct.pack("<II", os.pwrite(handle, body[40 : 40 + size], offset), 0)

    def readdir(self, node: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        found = b""
        for number, name in enumerate([b".", b"..", *sorted(map(os.fsencode, os.listdir(self.paths[node])))]):
            if number < offset:
                continue
            record = struct.pack("<QQII", number + 2, number + 1, len(name), 0) + name
            record += bytes(-len(record) % 8)
            if len(found) + len(record) > size:
                break
            found += record
        return found

    def statfs(self, _: int, __: bytes) -> bytes:
        return struct.pack("<QQQQQIIII6I", 1 << 20, 1 << 19, 1 << 19, 1 << 20, 1 << 19, 4096, 255, 4096, 0, *[0] * 6)

    def release(self, _: int, body: bytes) -> bytes:
        os.close(struct.unpack_from("<Q", body)[0])
        return b""

    def fsync(self, _: int, body: bytes) -> bytes:
        os.fsync(struct.unpack_from("<Q", body)[0])
        return b""

    def nothing(self, _: int, __: bytes) -> bytes:
        return b""


def main() -> None:
    """See this module's head."""
    real, mounted, hangs = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, 9)  # whoever started this is gone: so is this
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    if libc.mount(b"colo-share", os.fsencode(mounted), b"fuse.share", 0, options.encode()) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), mounted)
    print("mounted", flush=True)
    Share(real, device, Path(hangs)).serve()


if __name__ == "__main__":
    main()
