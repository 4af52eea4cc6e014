"""What both holders of a lease do with it, a fence beside a QEMU and a session of its own VM: renewals sent, answers
heard."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from colo.lease.frames import Frame
from colo.lease.link import LeaseLink
from colo.protocol.fencing import Actions, Certificate, Fence, FenceAction, FenceState
from colo.wire import LeaseMessage

PROOFS = {
    Certificate.STANDS: LeaseMessage.STANDS, Certificate.GONE: LeaseMessage.GONE, Certificate.ENDED: LeaseMessage.ENDED,
}


class Holding:
    """A lease, and the connection over which it is held. :meth:`hear`, :meth:`tend` return what is to be done."""

    def __init__(
        self, fence: Fence, peer: tuple[int, Any], *, token: str, who: str, allow_uids: Collection[int] = ()
    ) -> None:
        self.fence = fence
        self.link = LeaseLink(
            peer, token=token, generation=fence.generation, lease_ns=fence.lease.lease_ns, who=who, allow_uids=allow_uids)
        self.taken = 0
        """The generation that the secondary says it has claimed."""
        self.returned = 0
        """The generation that it says may be claimed from it."""
        self.said = ""
        self.notice = ""
        """Why it could not take over as things are, by its own word."""
        self.certified = False
        """The proof that there is was sent."""

    @property
    def has_proof(self) -> bool:
        return self.fence.certificate is not Certificate.NONE

    @property
    def over(self) -> bool:
        """Nothing is to be said any more."""
        return self.fence.state is FenceState.ALONE or (self.fence.state is FenceState.GONE and self.certified)

    def due_ns(self, now_ns: int) -> int | None:
        """When :meth:`tend` is next to be called; None: nothing is due."""
        due = [at for at in (self.fence.next_ns(),) if at is not None]
        if not self.over:
            if not self.link.met:
                due.append(self.link.try_ns)
            elif self.fence.renews:
                due.append(self.fence.lease.due_ns)
            else:
                due.append(now_ns + self.fence.lease.lease_ns // 4)
        return min(due, default=None)

    def tend(self, now_ns: int) -> Actions:
        """Time has passed: the lease may be over, a renewal may be due."""
        actions = self.fence.tick(now_ns)
        if self.over:
            self.link.drop()
            return actions
        self.link.tend(now_ns)
        if self.link.met and self.fence.renews and now_ns >= self.fence.lease.due_ns:
            self.link.send(Frame(LeaseMessage.RENEW, self.fence.generation, self.fence.lease.ask(now_ns)))
        return actions

    def hear(self, now_ns: int) -> Actions:
        """The link is ready."""
        actions: Actions = ()
        for frame in self.link.ready(now_ns):
            actions += self._take(frame, now_ns)
        return actions

    def _take(self, frame: Frame, now_ns: int) -> Actions:
        kind, fence = frame.kind, self.fence
        tell = (FenceAction.TELL_GUARD,)
        if kind is LeaseMessage.WELCOME:
            return (*self._noticed(frame), *((FenceAction.CERTIFY,) if self.has_proof else ()))
        if kind is LeaseMessage.REFUSED:
            self.said = self.link.said
            return tell
        if kind is LeaseMessage.NOTICE:
            return self._noticed(frame)
        if frame.generation != fence.generation:
            return ()
        if kind is LeaseMessage.PROMISE:
            before = fence.lease.end_ns
            actions = fence.promised(frame.sequence, frame.value, now_ns)
            return actions if tell[0] in actions or fence.lease.end_ns == before else (*actions, *tell)
        if kind is LeaseMessage.WANTS:
            return fence.wants(now_ns)
        if kind is LeaseMessage.STOP:
            self.taken = frame.value
            return fence.stop()
        if kind is LeaseMessage.END:
            self.taken = frame.value
            return fence.end("the VM runs at the other side")
        if kind is LeaseMessage.RETURNED:
            self.returned = frame.value
            reason = frame.text.get("reason")
            self.said = reason[:512] if isinstance(reason, str) else ""
            return tell
        return ()

    def _noticed(self, frame: Frame) -> Actions:
        notice = frame.text.get("notice")
        notice = notice[:512] if isinstance(notice, str) else ""
        if notice == self.notice:
            return ()
        self.notice = notice
        return (FenceAction.TELL_GUARD,)

    def certify(self, *, stands: bool) -> None:
        """Send the proof that there is; ``stands``: whether the VM is seen to stand still."""
        fence = self.fence
        if fence.certificate is Certificate.NONE or (fence.certificate is Certificate.STANDS and not stands):
            return
        self.certified = self.link.met and self.link.send(
            Frame(PROOFS[fence.certificate], fence.generation, text={"reason": fence.reason[:256]}))

    def alone(self, generation: int, reason: str) -> Actions:
        """This side holds ``generation``: the secondary is told, if it hears."""
        old = self.fence.generation
        actions = self.fence.alone(generation)
        if self.link.met:
            self.link.send(Frame(LeaseMessage.ALONE, old, value=generation, text={"reason": reason[:256]}))
        return actions
