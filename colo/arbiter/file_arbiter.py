"""The arbiter ``file:DIR``: a directory on storage that both sides can reach.

All of its state is one file, ``generation.N``. A claim renames it, first to ``claim.N+1.TOKEN``, then to
``generation.N+1``. A rename has one winner, since it takes away its own source. The step between is for a
rename whose answer was lost (NFS tries again, and then hears that the source is gone): the token in the
name tells the winner that it has won. Killed at any point, a claim leaves exactly one file, whose name
tells the generation.

Closing a generation and releasing it are claims too, of a next generation that nobody runs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Iterator

from colo.arbiter.arbiter import Arbiter, ArbiterIdentity, Claim, Holder, check_generation, check_vm, ended_on_purpose
from colo.arbiter.bounded import Bounded
from colo.arbiter.directory import ArbiterDirectory, Standing
from colo.arbiter.record import holder_text, new_holder, padded
from colo.arbiter.runner import Runner
from colo.errors import ArbitrationError, ArbitrationLost

_log = logging.getLogger(__name__)

TIMEOUT_S = 5.0
RECORD_WAIT_S = 0.25
"""So long a claim may be under way before its record is given up: then nobody knows who made it."""


class FileArbiter(Arbiter):
    """Arbitration by renaming a file in a directory that both sides can reach; see this module's head.

    The directory must have been made an arbiter (:func:`colo.arbiter.init_arbiter`), belong to this user or root, and not be
    writable by others. Every call opens it anew by its path, and looks whose it is: a share that is no longer mounted, or
    another one in its place, decides nothing. On network file systems names are cached; a claim is decided by the server, and
    the other calls make the client look again.

    ``vm``: whose arbiter it must be; "" takes anybody's. After ``timeout_s`` a call gives up with ArbitrationError (a hung
    file server blocks for ever).

    Raises ArbitrationError for no such directory, a wrong owner or mode, no arbiter in it, a copy of one, another VM's.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        role: str = "",
        vm: str = "",
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._place = ArbiterDirectory(directory)
        self.uri = self._place.uri
        self._role = role
        self._bounded = Bounded(timeout_s, self._place.error)
        self._token, self._closing_token, self._releasing_token = (secrets.token_hex(16) for _ in range(3))
        self._given: int | None = None
        """The highest generation that a claim returned: asked for again, it is refused."""
        self._seen = -1
        self.identity = self._bounded.run(self._first_look, "reading whose it is")
        check_vm(self.identity, vm, self.uri)

    # The interface. The work runs in a thread of its own: storage that hangs must not hang the session.

    def claim(self, generation: int, *, reason: str = "", runner: Runner | None = None) -> Claim:
        check_generation(generation)
        runner = runner or Runner.of()
        return self._bounded.run(
            lambda: self._claim(generation, reason, runner),
            f"claiming generation {generation + 1}",
            given=self._give,
        )

    def _give(self, claim: Claim) -> None:
        self._given = claim.generation

    def current(self) -> int:
        return self._bounded.run(self._current, "reading the generation")

    def holder(self) -> Holder:
        return self._bounded.run(self._holder, "reading who holds the generation")

    def close_generation(self, generation: int, reason: str, *, runner: Runner | None = None) -> None:
        check_generation(generation)
        runner = runner or Runner.of()
        self._bounded.run(lambda: self._close(generation, reason, runner), f"closing generation {generation}")

    def release(self, generation: int, *, reason: str) -> Holder:
        check_generation(generation)
        return self._bounded.run(lambda: self._release(generation, reason), f"releasing generation {generation}")

    # Reading.

    @contextlib.contextmanager
    def _open(self) -> Iterator[int]:
        with self._place.open() as directory:
            identity, _ = self._place.identity(directory)
            if identity != self.identity:
                raise self._place.error(
                    f"another arbiter is there now, of {identity.describe()}: mount again what was there, or start anew")
            yield directory

    def _first_look(self) -> ArbiterIdentity:
        with self._place.open() as directory:
            identity, _ = self._place.identity(directory)
            self._standing(directory)
            return identity

    def _standing(self, directory: int) -> Standing:
        standing = self._place.standing(directory)
        if standing.generation < self._seen:
            raise self._older(standing, self._seen)
        self._seen = standing.generation
        return standing

    def _older(self, standing: Standing, known: int) -> ArbitrationError:
        return self._place.error(
            f"{standing.name} is older than generation {known}, which this side knows of: is this "
            "the right directory, and was it put back from a copy?"
        )

    def _current(self) -> int:
        with self._open() as directory:
            self._place.look_again(directory)
            return self._standing(directory).generation

    def _holder(self) -> Holder:
        deadline = time.monotonic() + RECORD_WAIT_S
        with self._open() as directory:
            self._place.look_again(directory)
            while True:
                standing = self._standing(directory)
                holder = self._place.holder(directory, standing)
                # A file that was renamed while it was read may have told of the generation after.
                again = holder.unknown and (bool(standing.token) or self._place.standing(directory) != standing)
                if not again or time.monotonic() >= deadline:
                    return holder
                time.sleep(0.005)

    # Taking the next generation.

    def _claim(self, generation: int, reason: str, runner: Runner) -> Claim:
        if self._given is not None and generation < self._given:
            raise self._lost_text(f"this side has already taken over from generation {generation}")
        taken = self._next(generation, self._token, reason, role=self._role, runner=runner)
        self._take(taken)
        return Claim(taken.generation, self._role, self._token, taken.since_s, runner)

    def _close(self, generation: int, reason: str, runner: Runner) -> None:
        with self._open() as directory:
            standing = self._standing(directory)
            holder = self._place.holder(directory, standing)
        if standing.generation == generation + 1 and holder.closed and holder.runner == runner:
            return  # done before
        if standing.generation == generation and not (
            self._given == generation or holder.token == self._token or holder.runner == runner
        ):
            raise self._lost_text(f"generation {generation} is held by {holder.describe()}, who alone can close it")
        self._take(self._next(generation, self._closing_token, reason, role=self._role, runner=runner, closed=True))

    def _release(self, generation: int, reason: str) -> Holder:
        taken = self._next(generation, self._releasing_token, reason)
        self._take(taken, closed_too=True)
        return taken

    def _next(
        self, generation: int, token: str, reason: str, *, role: str = "", runner: Runner | None = None, closed: bool = False
    ) -> Holder:
        return new_holder(
            generation + 1, token, role=role, runner=runner, since_s=time.time(), reason=reason, closed=closed)

    def _take(self, taken: Holder, *, closed_too: bool = False) -> None:
        """Make ``taken`` the holder of its generation, by the generation before it."""
        generation = taken.generation - 1
        mine = f"claim.{taken.generation}.{taken.token}"
        final = f"generation.{taken.generation}"
        with self._open() as directory:
            for _ in range(20):
                standing = self._standing(directory)
                if standing.generation != generation:
                    self._own_or_lost(directory, standing, taken)
                    break
                if not closed_too and (holder := self._place.holder(directory, standing)).closed:
                    raise self._closed(holder)
                try:
                    os.rename(standing.name, mine, src_dir_fd=directory, dst_dir_fd=directory)
                except FileNotFoundError:
                    # Lost, or won with a lost answer, or the claim before this one was just finished: look
                    # again.
                    continue
                break
            else:
                raise self._place.error(f"generation {generation} is there and cannot be renamed; try again")
            os.fsync(directory)
            self._record(directory, mine, taken)
            with contextlib.suppress(FileNotFoundError):
                os.rename(mine, final, src_dir_fd=directory, dst_dir_fd=directory)
            os.fsync(directory)
            # Only the winner's file ever gets the final name, so finding it there is proof.
            standing = self._standing(directory)
            if standing.generation != taken.generation:
                raise self._lost(directory, standing, generation)

    def _own_or_lost(self, directory: int, standing: Standing, taken: Holder) -> None:
        """Return if ``standing`` is a claim of our own whose answer was lost or came too late, else raise."""
        generation = taken.generation - 1
        if standing.generation < generation:
            raise self._older(standing, generation)
        token = standing.token or self._place.holder(directory, standing).token
        if standing.generation == taken.generation and token == taken.token:
            return
        raise self._lost(directory, standing, generation)

    def _lost(self, directory: int, standing: Standing, generation: int) -> ArbitrationLost:
        holder = self._place.holder(directory, standing)
        if holder.closed:
            return self._closed(holder)
        return self._lost_text(f"generation {generation} is over, {standing.generation} holds: {holder.describe()}")

    def _closed(self, holder: Holder) -> ArbitrationLost:
        assert self.identity is not None
        return self._lost_text(ended_on_purpose(holder, self.uri, self.identity.vm))

    def _lost_text(self, text: str) -> ArbitrationLost:
        return ArbitrationLost(f"arbiter {self.uri}: {text}")

    def _record(self, directory: int, name: str, taken: Holder) -> None:
        """Write into the file who holds it. The claim is won already: what cannot be written is only not written."""
        assert self.identity is not None
        try:
            file = os.open(name, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
            try:
                os.pwrite(file, padded(holder_text(taken, self.identity)), 0)
                os.fsync(file)
            finally:
                os.close(file)
        except FileNotFoundError:
            pass  # finished before, or claimed from already: the caller looks
        except OSError as error:
            _log.warning("arbiter %s: cannot write into %s who holds it: %s", self.uri, name, error)
