"""The secondary's end of the lease: it meets the primary's side, promises, and learns when it may run the VM."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from colo.abc import Transport
from colo.errors import ArbitrationLost, ChannelLost, ColoError, Interrupted, ProtocolError, VmEnded
from colo.lease.clock import now_ns
from colo.lease.frames import Frame
from colo.lease.meeting import TEXT_MAX, Meeting, Welcome
from colo.lease.served import Served, ServedConnections
from colo.lease.sight import Sight, Watched
from colo.protocol.lease import LEASE_MS_LEAST, LEASE_MS_MOST, LeaseGrantor, lease_ns_of
from colo.wire import LeaseMessage

MEETINGS_MAX = 8
"""So many may wait for the arbiter to be asked, also when who wanted to be met has gone."""
DRAIN_S = 0.1
"""After a proof, so long for what the primary sent last to be read from its channel."""
WATCH_MS = 50
"""How often it is looked whether the promise is over, while a primary is followed."""
IDLE_MS = 500
"""The same, while none is."""
SAY_S = 0.1
LOOK_S = 0.2
"""How often who waits to run looks whether the other side has won meanwhile."""


class Promises:
    """Promises to the primary's side of one session after another, and keeps what it promised.

    ``required``: no stream is let in before the two sides have met (:meth:`bars`). ``forgotten``: this side was started again
    and may have promised before. ``checkpoint()`` is the committed checkpoint's number or None, ``tell`` hears what people
    should know, ``wake`` is called when the session has something to look at: :attr:`alone`, :attr:`ended`.
    """

    def __init__(
        self,
        lease_ms: float,
        *,
        required: bool,
        arbiter: Watched | None,
        checkpoint: Callable[[], int | None],
        tell: Callable[[str], None],
        wake: Callable[[], None],
        forgotten: bool = False,
    ) -> None:
        self.required = required
        self.lease_ms = self._most_ms = lease_ms
        self.meeting: Meeting | None = None
        """Of the session that is promised to."""
        self.alone = 0
        """The generation that the primary has claimed to run alone, and said so; 0: it has not."""
        self.ended = ""
        """Why the VM was ended on purpose."""
        self.said = ""
        """What the other side said with it."""
        self.lapsed = ""
        """Why the primary that is followed counts as lost, by its lease."""
        self._followed: Transport | None = None
        self._told_unfenced = False
        self._proven_at = 0.0
        self._grantor = LeaseGrantor(
            lease_ns_of(lease_ms) if lease_ms else 1, now_ns(), forgotten=forgotten and required)
        self._sight = Sight(arbiter)
        self._checkpoint = checkpoint
        self._tell = tell
        self._wake_session = wake
        self._token = ""
        self._notice = ""
        self._standing: Frame | None = None
        """What is said again to whoever meets this side from now on: WANTS, STOP, END or RETURNED."""
        self._changed = threading.Condition()
        self._meetings = threading.BoundedSemaphore(MEETINGS_MAX)
        self._served = ServedConnections(
            self._changed, take_frame=self._take_frame, look=self._watch_lease, turn_ms=self._turn_ms, tell=tell)

    # -- what the session asks

    @property
    def generation(self) -> int | None:
        """The generation of the primary that was met; None: nobody was."""
        return self.meeting.generation if self.meeting is not None else None

    def bars(self) -> str:
        """Why no migration stream may be let in now, or ""."""
        if self.required and not (self.meeting is not None and self._grantor.promise_end_ns):
            return ("nobody asked this side for a lease, so nothing would stop that VM before this side runs it: use "
                    "`colo protect`, or give this side --no-lease")
        return ""

    def status(self) -> dict[str, Any]:
        """For the session's status; keys are stable."""
        with self._changed:
            left_ns = self._grantor.wait_ns(now_ns())
            return {
                "lease_ms": self.lease_ms,
                "met": self.meeting.who if self.meeting is not None else None,
                "promised_ms": None if left_ns is None else round(left_ns / 1e6, 1),
                "unfenced": self._grantor.unfenced,
                "proof": self._grantor.proof or None,
            }

    def follow(self, sock: Transport | None) -> None:
        """The session follows the primary at the other end of ``sock`` from now on; None: none any more. While it does,
        :attr:`lapsed` is watched."""
        with self._changed:
            self._followed, self.lapsed = sock, ""
        if sock is not None and self.required:
            with contextlib.suppress(ChannelLost):
                sock.probe_silence(1)  # acknowledged probes are how a host without a fence is told from a dead one

    def progress(self) -> None:
        """A checkpoint was committed: the other side's VM runs."""
        self._grantor.progress(now_ns())

    @property
    def unfenced(self) -> bool:
        """The primary's VM goes on although its lease is over: nothing stops it there."""
        return self.required and self._grantor.unfenced

    def notice(self, text: str) -> None:
        """Tell the primary's side why this one could not take over; "": it could."""
        text = text[:TEXT_MAX]
        with self._changed:
            if text != self._notice:
                self._notice = text
                self._served.send_all(Frame(LeaseMessage.NOTICE, text={"notice": text}))

    def want(self) -> None:
        """Promise no more."""
        with self._changed:
            self._grantor.want()
            if self._standing is None:
                self._say(Frame(LeaseMessage.WANTS, self.generation or 0))

    def relent(self) -> None:
        """Promise again: this side does not want to run the VM after all."""
        with self._changed:
            self._grantor.relent()
            self._standing = None

    def claimed(self, generation: int) -> None:
        """This side has won ``generation``: the other side is told to stop its VM and to prove it."""
        with self._changed:
            self._grantor.want()
            self._say(Frame(LeaseMessage.STOP, self.generation or 0, value=generation))

    def about_to_run(self, generation: int) -> None:
        """The VM is loaded here: the other side is told to end its own, and with it what that holds (locks of images)."""
        with self._changed:
            self._say(Frame(LeaseMessage.END, self.generation or 0, value=generation))

    def returned(self, generation: int, reason: str) -> None:
        """This side could not run the VM: the other one may claim it back from ``generation``."""
        with self._changed:
            self._say(Frame(
                LeaseMessage.RETURNED, self.generation or 0, value=generation, text={"reason": reason[:TEXT_MAX]}))

    def wait_to_run(
        self, *, stopping: Callable[[], bool], lost: Callable[[], None], told: Callable[[str], None], proven: bool = False,
        will_fence: bool = False,
    ) -> str:
        """Wait until the VM may run here; returns what allows it. ``proven``: the arbiter itself has fenced the other side;
        ``will_fence``: it is to be asked, and does, so that it need not be waited for what only a proof can tell.

        ``lost`` is called now and then, and raises ArbitrationLost when the other side has won. ``told`` hears once why it
        takes long. Raises Interrupted when ``stopping``, ArbitrationLost when the other side said that it runs alone, VmEnded
        when it said that the VM was ended on purpose.
        """
        said = False
        began, next_look = time.monotonic(), 0.0
        while True:
            with self._changed:
                if self.ended:  # a proof as good as any that the VM stands still, and that nobody is to run it
                    raise VmEnded(f"the VM was ended at the primary ({self.ended}): nothing is to be taken over")
                wait_ns = 0 if proven or not self.required else self._grantor.wait_ns(now_ns())
                if wait_ns == 0:
                    if proven:
                        return "the arbiter fenced the other side"
                    return self._grantor.proof or ("its lease is over" if self.required else "there is no lease")
                if wait_ns is None and will_fence:
                    return "nothing stops the other side but the arbiter, which fences"
                if not said and time.monotonic() > began + SAY_S:
                    said = True
                    told(
                        f"this side has promised not to run the VM for another {wait_ns / 1e6:.0f} ms"
                        if wait_ns is not None else
                        "the primary's VM went on after its lease was over (nothing fences it there), so time proves "
                        "nothing: this side runs it only on a proof; see to the other host, or use exec: fencing")
                left_s = SAY_S if wait_ns is None else min(SAY_S, wait_ns / 1e9)
                self._changed.wait(left_s)
            if stopping():
                raise Interrupted("the session was asked to stop while it waited for the other side's lease to end")
            if self.alone:
                raise ArbitrationLost(f"the primary runs on alone in generation {self.alone}: {self.said}")
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + LOOK_S
                lost()

    def close(self) -> None:
        """End all lease connections. Any number of times."""
        self._served.close()

    # -- connections

    def take(self, sock: Transport) -> None:
        """A connection that opens with a lease frame is this side's from now on."""
        self._served.take(sock)

    def _turn_ms(self) -> float:
        return IDLE_MS if self._followed is None else WATCH_MS

    def _watch_lease(self) -> None:
        """A primary that is followed and asks for no promise: dead or cut off, or alive with nothing beside it that
        fences."""
        with self._changed:
            sock, grantor, now = self._followed, self._grantor, now_ns()
            if sock is not None and grantor.proof and not self.lapsed and time.monotonic() > self._proven_at + DRAIN_S:
                self.lapsed = grantor.proof  # its channel should have told; something keeps that open, or frozen
                self._wake_session()
                return
            if sock is None or not self.required or now < grantor.promise_end_ns or grantor.wanting or self.lapsed:
                return
            if sock.silence_ms() < grantor.lease_ns / 2e6:
                grantor.progress(now)
            tell = ""
            if grantor.unfenced and not self._told_unfenced:
                self._told_unfenced = True
                tell = ("the primary goes on, but nothing asks for its lease any more: neither fence nor guard is beside "
                        "it. If it "
                        "is lost now, this side takes over only on a proof, or when exec: fences; start `colo protect` "
                        "there again")
            if grantor.lapsed(now):
                self.lapsed = f"nobody has asked for the lease of {self.lease_ms:g} ms since, and the primary is silent"
        if tell:
            self._tell(tell)
        if self.lapsed:
            self._wake_session()

    def _take_frame(self, connection: Served, frame: Frame) -> None:
        if frame.kind is LeaseMessage.MEET:
            if connection.met and frame.text.get("token"):
                self._meet_or_refuse(connection, frame)  # for its receipt: all before it was heard; nobody else is asked
                return
            if connection.asked:
                raise ProtocolError("MEET, for the second time on one connection")
            connection.asked = True
            # Asking the arbiter may take seconds, and promises must not wait for a stranger.
            if not self._meetings.acquire(blocking=False):
                raise ProtocolError(f"{MEETINGS_MAX} others are being met")
            connection.busy = True
            threading.Thread(target=self._meet, args=(connection, frame), name="colo-lease-meeting", daemon=True).start()
            return
        if not connection.met:
            raise ProtocolError(f"{frame.kind.name} from one that has not met this side")
        with self._changed:
            if frame.generation != self.generation:
                return  # of a session that is over
            if frame.kind is LeaseMessage.RENEW:
                self._answer(connection, frame)
            elif frame.kind in (LeaseMessage.GONE, LeaseMessage.STANDS):
                kind = "its VM's process is gone" if frame.kind is LeaseMessage.GONE else "its VM stands still"
                self._grantor.proven(f"the other side proves: {kind}{_reason(frame)}")
                self._proven_at = time.monotonic()
            elif frame.kind is LeaseMessage.ENDED:
                self.ended = _reason(frame).lstrip(" (").rstrip(")") or "on purpose"
                self._grantor.proven(f"the VM was ended: {self.ended}")
            elif frame.kind is LeaseMessage.ALONE:
                self.said = _reason(frame).lstrip(" (").rstrip(")")
                self.alone = frame.value
            else:
                raise ProtocolError(f"{frame.kind.name} is for the other side to say")
            self._changed.notify_all()
        if self.ended or self.alone:
            self._wake_session()

    def _answer(self, connection: Served, frame: Frame) -> None:
        """A renewal: the promise counts from its sending."""
        if self.lease_ms and self._grantor.renewal(now_ns()):
            self._told_unfenced = False
            self._served.send(connection, Frame(
                LeaseMessage.PROMISE, frame.generation, frame.sequence, self._grantor.lease_ns))
        elif self._standing is not None:
            self._served.send(connection, self._standing)

    def _say(self, frame: Frame) -> None:
        self._standing = frame
        self._served.send_all(frame)

    # -- meeting

    def _meet(self, connection: Served, frame: Frame) -> None:
        try:
            self._meet_or_refuse(connection, frame)
        finally:
            connection.busy = False
            self._meetings.release()

    def _meet_or_refuse(self, connection: Served, frame: Frame) -> None:
        try:
            meeting = Meeting.of(frame.text)
            welcome = self._welcome(meeting)
        except (ColoError, ValueError) as error:
            self._served.send(connection, Frame(LeaseMessage.REFUSED, text={"reason": str(error)[:TEXT_MAX]}))
            connection.sock.end_sending()
            self._tell(f"a primary was refused: {error}")
            return
        with self._changed:
            connection.met = True
            self._served.send(connection, Frame(LeaseMessage.WELCOME, welcome.generation, text=welcome.as_dict()))
            if self._standing is not None:
                self._served.send(connection, self._standing)

    def _welcome(self, meeting: Meeting) -> Welcome:
        known = bool(meeting.token)
        seen = meeting.generation if known else self._sight.compare(meeting)
        with self._changed:
            if known:
                if not self._token or not secrets.compare_digest(meeting.token, self._token):
                    raise ProtocolError("that session is over here: protect the VM anew")
            else:
                self._begin(meeting)
            session = self.meeting
            assert session is not None
            checkpoint = self._checkpoint()
            return Welcome(
                token=self._token, lease_ms=self.lease_ms, generation=seen,
                arbiter_id=self._sight.identity("id"), checkpoint=-1 if checkpoint is None else checkpoint,
                following=checkpoint is not None, notice=self._notice, who=f"{socket.gethostname()} (pid "
                                                                           f"{os.getpid()})"[:TEXT_MAX])

    def _begin(self, meeting: Meeting) -> None:
        """A session begins, or a new guard of the same one came."""
        if (self._most_ms > 0) != (meeting.lease_ms > 0):
            raise ProtocolError(
                "one side wants a lease and the other was told to do without: give --no-lease to both, or to none")
        if meeting.lease_ms and not LEASE_MS_LEAST <= meeting.lease_ms <= LEASE_MS_MOST:
            raise ProtocolError(f"a lease of {meeting.lease_ms:g} ms cannot be had")
        before = self.meeting
        if before is not None:
            same = (before.generation, before.claim_token) == (meeting.generation, meeting.claim_token)
            if same and before.claim_token:
                return
            if self._grantor.wanting:
                raise ProtocolError("this secondary is about to take the VM over")
            if meeting.generation < before.generation:
                raise ProtocolError(
                    f"this secondary knows of generation {before.generation}, that primary of {meeting.generation}: it is "
                    "over")
        # This side's own is the most that it promises: after a restart it waits so long.
        lease_ns = lease_ns_of(min(meeting.lease_ms, self._most_ms)) if self._most_ms else 1
        until_ns = self._grantor.promise_end_ns
        # What was promised before still holds; proofs of another generation do not.
        self._grantor = LeaseGrantor(lease_ns, now_ns())
        self._grantor.promise_end_ns = until_ns
        self.lease_ms = lease_ns / 1e6 if self._most_ms else 0.0
        self.meeting, self.alone, self.ended, self._standing = meeting, 0, "", None
        self._token = secrets.token_hex(16)
        self._served.part()
        self._changed.notify_all()



def _reason(frame: Frame) -> str:
    reason = frame.text.get("reason")
    return f" ({reason[:TEXT_MAX]})" if isinstance(reason, str) and reason else ""
