"""Making the arbiter ``file:DIR``: its identity and generation.0, once and for all, however many try and whenever they die.

Everybody plants a seed (the record of generation 0) and an identity that names it, each under a name of its own. The first to
link its identity as ``identity`` has made the arbiter; renaming the one seed that this names to generation.0 can succeed only
once, and whoever finds it undone may do it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Callable

from colo.arbiter.arbiter import ArbiterIdentity
from colo.arbiter.bounded import Bounded
from colo.arbiter.directory import IDENTITY, SEED, ArbiterDirectory
from colo.arbiter.record import holder_text, identity_text, new_holder, new_identity, padded, same_vm

TIMEOUT_S = 10.0


def make_file_arbiter(
    path: str | os.PathLike[str], *, vm: str, uuid: str = "", timeout_s: float = TIMEOUT_S
) -> ArbiterIdentity:
    """Make the directory at ``path``, which must exist, the arbiter of this VM; if it is that already, only say so.

    Raises ArbitrationError when it is another VM's, has something in it that is no arbiter's, or cannot be written.
    """
    place = ArbiterDirectory(path)
    wanted = new_identity(secrets.token_hex(16), vm, uuid)
    return Bounded(timeout_s, place.error).run(lambda: _make(place, wanted), "making the arbiter")


def _make(place: ArbiterDirectory, wanted: ArbiterIdentity) -> ArbiterIdentity:
    with place.open() as directory:
        place.look_again(directory)
        names = os.listdir(directory)
        if IDENTITY not in names:
            if any(name.startswith(("generation.", "claim.")) for name in names):
                place.identity(directory)  # says what is wrong; if somebody was faster, it is right
            else:
                _found(place, directory, wanted)
        identity, token = place.identity(directory)
        if not same_vm(identity, wanted.vm, wanted.uuid):
            raise place.error(
                f"belongs to {identity.describe()} already: give {wanted.describe()} a directory of its own")
        with contextlib.suppress(FileNotFoundError):
            os.rename(SEED.format(token=token), "generation.0", src_dir_fd=directory, dst_dir_fd=directory)
        os.fsync(directory)
        place.standing(directory)
        return identity


def _found(place: ArbiterDirectory, directory: int, wanted: ArbiterIdentity) -> None:
    """Give the directory an identity, unless somebody else just does."""
    token = secrets.token_hex(16)
    seed, own = SEED.format(token=token), f"{IDENTITY}.{token}"
    made = False
    try:
        first = new_holder(0, token, since_s=time.time(), reason="made")
        _plant(directory, seed, lambda inode: holder_text(first, wanted))
        _plant(directory, own, lambda inode: identity_text(wanted, token=token, inode=inode))
        os.fsync(directory)
        with contextlib.suppress(FileExistsError):
            os.link(own, IDENTITY, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        os.fsync(directory)
        # Asked of the file, not of link(): its answer may have been lost, and the second try have found it there.
        made = place.identity(directory)[1] == token
    finally:
        with contextlib.suppress(OSError):
            os.unlink(own, dir_fd=directory)
        if not made and not _names(place, directory, token):
            with contextlib.suppress(OSError):
                os.unlink(seed, dir_fd=directory)


def _names(place: ArbiterDirectory, directory: int, token: str) -> bool:
    """May the arbiter's identity name this seed? Also True if it cannot be told: then the seed stays."""
    try:
        return place.identity(directory)[1] == token
    except Exception:
        return IDENTITY in os.listdir(directory)


def _plant(directory: int, name: str, text: Callable[[int], bytes]) -> None:
    """A new file with what ``text`` makes of its inode number, on the disk when this returns."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    file = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        whole = padded(text(os.fstat(file).st_ino))
        if os.write(file, whole) != len(whole):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file)
    finally:
        os.close(file)
