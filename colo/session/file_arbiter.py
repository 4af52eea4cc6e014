"""The arbiter ``file:DIR``: a directory on storage that both sides can reach.

All of its state is one file, ``generation.N``. A claim renames it, first to ``claim.N+1.TOKEN``, then to
``generation.N+1``. A rename has one winner, since it takes away its own source. The step between is for a
rename whose answer was lost (NFS tries again, and then hears that the source is gone): the token in the
name tells the winner that it has won. Killed at any point, a claim leaves exactly one file, whose name
tells the generation.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from colo.errors import ArbitrationError, ArbitrationLost
from colo.session.arbiter import Arbiter, Claim, check_generation, new_claim

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

TIMEOUT_S = 5.0
_RECORD_BYTES = 512

_GENERATION_NAME = re.compile(r"generation\.(0|[1-9][0-9]{0,14})")
_CLAIM_NAME = re.compile(r"claim\.([1-9][0-9]{0,14})\.([0-9a-f]{32})")
_SEED_NAME = "seed.{token}"
_CREATED = "created"
_TOKEN = re.compile(r"[0-9a-f]{32}")
_NETWORK = ("nfs", "cifs", "smb", "fuse", "9p", "ceph", "gfs2", "ocfs2", "lustre", "glusterfs", "virtiofs")


@dataclass(frozen=True, slots=True)
class _Standing:
    """The one file that is the state: its name, and the generation it stands for."""

    name: str
    generation: int
    token: str
    """Of a claim not finished yet; "" for a generation."""


class FileArbiter(Arbiter):
    """Arbitration by renaming a file in a directory that both sides can reach; see this module's head.

    The directory must exist, belong to this user or root, and not be writable by others. Every call opens
    it anew by its path: a share that is no longer mounted has no generation in it, and so decides nothing.
    On network file systems names are cached; a claim is decided by the server, and the other calls make the
    client look again.

    :param create: make generation.0 if there is no generation. Only one side should (see
        :func:`arbiter_from_uri`).
    :param timeout_s: after which a call gives up with ArbitrationError (a hung file server blocks for ever).
    :raises ArbitrationError: no such directory, wrong owner or mode, no generation in it, or more than one.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        role: str = "",
        create: bool = False,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._path = os.path.abspath(os.fspath(directory))
        self._role = role
        self._timeout_s = timeout_s
        self._token = secrets.token_hex(16)
        self._lock = threading.Lock()
        self._given: int | None = None
        """The highest generation that a claim returned: asked for again, it is refused."""
        if create:
            self._within_time(self._create, "making generation.0")
        self.current()

    # The interface.

    def claim(self, generation: int, *, reason: str = "") -> Claim:
        check_generation(generation)
        return self._within_time(
            lambda: self._claim(generation, reason),
            f"claiming generation {generation + 1}",
            given=self._give,
        )

    def _give(self, claim: Claim) -> None:
        self._given = claim.generation

    def current(self) -> int:
        return self._within_time(self._current, "reading the generation")

    # Each below runs in a thread of its own: storage that hangs must not hang the session.

    def _within_time(
        self, work: Callable[[], _T], what: str, *, given: Callable[[_T], None] = lambda result: None
    ) -> _T:
        """``given`` is told, before the next call can begin, that the result did not come too late."""
        results: list[_T] = []
        errors: list[BaseException] = []
        ending = threading.Lock()
        abandoned = False

        def run() -> None:
            try:
                with self._lock:
                    if abandoned:
                        return
                    result = work()
                    with ending:
                        if not abandoned:
                            given(result)
                            results.append(result)
            except OSError as error:
                errors.append(self._error(f"{what}: {error.strerror or error}"))
                errors[-1].__cause__ = error
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, name="colo-arbiter", daemon=True)
        thread.start()
        thread.join(self._timeout_s)
        with ending:
            abandoned = not results
        if results:
            return results[0]
        if errors:
            raise errors[0]
        raise self._error(f"{what}: no answer from the storage for {self._timeout_s:g} s")

    def _error(self, text: str) -> ArbitrationError:
        return ArbitrationError(f"arbiter file:{self._path}: {text}")

    @contextlib.contextmanager
    def _open(self) -> Iterator[int]:
        """The directory, opened anew and checked."""
        try:
            directory = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            remedy = (
                "make it, and mount what both sides share there"
                if error.errno == errno.ENOENT
                else "see to it"
            )
            raise self._error(f"cannot open the directory: {error.strerror}; {remedy}") from error
        try:
            info = os.fstat(directory)
            if os.geteuid() and info.st_uid not in {0, os.geteuid()}:
                raise self._error(f"belongs to user {info.st_uid}, who could decide alone: chown it")
            if info.st_mode & stat.S_IWOTH:
                raise self._error(f"everybody may write to it (mode {info.st_mode & 0o7777:o}): chmod o-w it")
            yield directory
        finally:
            os.close(directory)

    def _standing(self, directory: int) -> _Standing:
        """What holds now. A listing made during a rename may show the file twice or not at all: look again
        then."""
        pause_s = 0.001
        for _ in range(9):
            found = self._scan(directory)
            if len(found) == 1:
                return found[0]
            time.sleep(pause_s)
            pause_s *= 2
        if found:
            names = ", ".join(sorted(each.name for each in found))
            raise self._error(
                f"several generations: {names}; find out which side runs the VM, stop the other one, "
                "and remove all but the highest"
            )
        raise self._error(
            "no generation in it; is what both sides share mounted here? If the VM is new, let one "
            "side create it; if the file was removed, put generation.N (empty) back with the N that holds"
        )

    def _scan(self, directory: int) -> list[_Standing]:
        found = []
        for name in os.listdir(directory):
            if match := _GENERATION_NAME.fullmatch(name):
                standing = _Standing(name, int(match[1]), "")
            elif match := _CLAIM_NAME.fullmatch(name):
                standing = _Standing(name, int(match[1]), match[2])
            elif name.startswith(("generation", "claim.")):
                raise self._error(
                    f"{name!r} looks like a generation and is none: find out who made it, remove it"
                )
            else:
                continue
            try:
                info = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if not stat.S_ISREG(info.st_mode):
                raise self._error(f"{name!r} is not a regular file: find out who made it, remove it")
            found.append(standing)
        return found

    def _current(self) -> int:
        with self._open() as directory:
            self._look_again(directory)
            return self._standing(directory).generation

    def _look_again(self, directory: int) -> None:
        """Make a network file system's client ask its server: it may believe in a name that is gone for
        minutes."""
        if not _on_network(os.fstat(directory).st_dev):
            return
        probe = f"probe.{secrets.token_hex(16)}"
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=directory))
        os.unlink(probe, dir_fd=directory)

    # A claim.

    def _claim(self, generation: int, reason: str) -> Claim:
        if self._given is not None and generation < self._given:
            raise ArbitrationLost(
                f"arbiter file:{self._path}: this side has already taken over from generation {generation}"
            )
        claim = new_claim(generation + 1, self._role, self._token)
        mine = f"claim.{generation + 1}.{self._token}"
        final = f"generation.{generation + 1}"
        with self._open() as directory:
            for _ in range(20):
                standing = self._standing(directory)
                if standing.generation != generation:
                    self._own_or_lost(directory, standing, generation)
                    break
                try:
                    os.rename(standing.name, mine, src_dir_fd=directory, dst_dir_fd=directory)
                except FileNotFoundError:
                    # Lost, or won with a lost answer, or the claim before this one was just finished: look
                    # again.
                    continue
                break
            else:
                raise self._error(f"generation {generation} is there and cannot be renamed; try again")
            os.fsync(directory)
            self._record(directory, mine, claim, reason)
            with contextlib.suppress(FileNotFoundError):
                os.rename(mine, final, src_dir_fd=directory, dst_dir_fd=directory)
            os.fsync(directory)
            # Only the winner's file ever gets the final name, so finding it there is proof.
            standing = self._standing(directory)
            if standing.generation != generation + 1:
                raise self._lost(directory, standing, generation)
        return claim

    def _own_or_lost(self, directory: int, standing: _Standing, generation: int) -> None:
        """Return if ``standing`` is a claim of our own whose answer was lost or came too late, else raise."""
        if standing.generation < generation:
            raise self._error(
                f"{standing.name} is older than generation {generation}, which this side knows of: is this "
                "the right directory, and was it put back from a copy?"
            )
        token = standing.token or self._holder(directory, standing).get("token")
        if standing.generation == generation + 1 and token == self._token:
            return
        raise self._lost(directory, standing, generation)

    def _lost(self, directory: int, standing: _Standing, generation: int) -> ArbitrationLost:
        holder = self._holder(directory, standing)
        who = ", ".join(f"{key} {holder[key]}" for key in ("role", "host", "pid", "time") if holder.get(key))
        return ArbitrationLost(
            f"arbiter file:{self._path}: generation {generation} is over, {standing.generation} holds"
            + (f" ({who})" if who else "")
        )

    def _record(self, directory: int, name: str, claim: Claim, reason: str) -> None:
        """Write into the file who holds it. The claim is won already: what cannot be written is only not
        written."""
        record = {
            "generation": claim.generation,
            "token": claim.token,
            "role": claim.role[:32],
            "host": claim.host,
            "pid": claim.pid,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(claim.time_s)),
            "reason": reason[:32],
        }
        # Always as long: written over the record before it, it leaves nothing of that.
        text = json.dumps(record).encode().ljust(_RECORD_BYTES - 1)[: _RECORD_BYTES - 1] + b"\n"
        try:
            file = os.open(name, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
            try:
                os.pwrite(file, text, 0)
                os.fsync(file)
            finally:
                os.close(file)
        except FileNotFoundError:
            pass  # finished before, or claimed from already: the caller looks
        except OSError as error:
            _log.warning("arbiter file:%s: cannot write into %s who holds it: %s", self._path, name, error)

    def _holder(self, directory: int, standing: _Standing) -> dict[str, object]:
        """What the file says about its holder; empty if it says nothing, or speaks of another generation."""
        try:
            file = os.open(standing.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
            try:
                record = json.loads(os.read(file, _RECORD_BYTES))
            finally:
                os.close(file)
        except (OSError, ValueError):
            return {}
        if not isinstance(record, dict) or record.get("generation") != standing.generation:
            return {}
        return record

    # The first generation.

    def _create(self) -> None:
        """Make generation.0, once and for all, however many try and whenever they die.

        The first to link its seed as ``created`` has made the arbiter; renaming that one seed to
        generation.0 can succeed only once, and whoever finds it undone may do it.
        """
        with self._open() as directory:
            if self._scan(directory):
                return
            seed = _SEED_NAME.format(token=self._token)
            try:
                self._plant(directory, seed)
                with contextlib.suppress(FileExistsError):
                    os.link(seed, _CREATED, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
                os.fsync(directory)
                first = self._creator(directory)
                with contextlib.suppress(FileNotFoundError):
                    source = _SEED_NAME.format(token=first)
                    os.rename(source, "generation.0", src_dir_fd=directory, dst_dir_fd=directory)
                os.fsync(directory)
            finally:
                if self._creator(directory, default="") != self._token:
                    with contextlib.suppress(OSError):
                        os.unlink(seed, dir_fd=directory)

    def _plant(self, directory: int, seed: str) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        os.close(os.open(seed, flags, 0o600, dir_fd=directory))
        file = os.open(seed, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
        try:
            text = (
                json.dumps({"generation": 0, "token": self._token}).encode().ljust(_RECORD_BYTES - 1) + b"\n"
            )
            if os.write(file, text) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file)
        finally:
            os.close(file)

    def _creator(self, directory: int, default: str | None = None) -> str:
        """The token of whoever made this arbiter."""
        try:
            file = os.open(_CREATED, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
            try:
                record = json.loads(os.read(file, _RECORD_BYTES))
            finally:
                os.close(file)
            token = record["token"]
            if isinstance(token, str) and _TOKEN.fullmatch(token):
                return token
        except (OSError, ValueError, TypeError, KeyError):
            pass
        if default is None:
            raise self._error(f"the file {_CREATED!r} says nothing: if this VM is new, empty the directory")
        return default


def _on_network(device: int) -> bool:
    """Is the file system with this st_dev shared with other machines, so that its names may be cached?"""
    place = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                left, _, right = line.partition(" - ")
                if left.split()[2] == place:
                    return right.split()[0].startswith(_NETWORK)
    except (OSError, IndexError):
        pass
    return True
