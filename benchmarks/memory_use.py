"""What memory a secondary takes, while a scripted primary sends it thousands of checkpoints."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.scripted_primary import ScriptedPrimary
from benchmarks.session_vm import ColoSecondary
from colo.control.client import ask
from colo.control.server import SOCKET_NAME

MIB = 1 << 20
SAMPLES = 50
ALLOWED_BESIDES_BYTES = 100 * MIB


@dataclass(frozen=True)
class MemorySample:
    """Bytes, after so many checkpoints. ``image_bytes`` is the storage of the image's files, mapped or not."""

    checkpoints: int
    anonymous_bytes: int
    rss_bytes: int
    image_bytes: int
    staged_high_water_bytes: int

    @property
    def taken_bytes(self) -> int:
        """All that the machine misses because of the secondary: whichever way of counting says more."""
        return max(self.anonymous_bytes + self.image_bytes, self.rss_bytes)


@dataclass
class MemoryUse:
    """A session's memory over its checkpoints."""

    ram_bytes: int
    largest_checkpoint_bytes: int = 0
    """Of its stream; the first copy does not count."""
    samples: list[MemorySample] = field(default_factory=list)

    @property
    def besides_bytes(self) -> int:
        """The most that was taken beyond the RAM image and the largest staged checkpoint."""
        return max(s.taken_bytes for s in self.samples) - self.ram_bytes - self.largest_checkpoint_bytes

    @property
    def growth_bytes(self) -> int:
        """Anonymous memory at the end, less that after the first tenth."""
        return self.samples[-1].anonymous_bytes - self.samples[len(self.samples) // 10].anonymous_bytes


def sample(secondary: ColoSecondary, control: Path, checkpoints: int) -> MemorySample:
    # Not smaps: a secondary keeps out of core dumps, and then only root may read that.
    text = Path(f"/proc/{secondary.process.pid}/status").read_text()
    found = {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    status = ask(control, "status")
    return MemorySample(
        checkpoints, found["RssAnon"], found["VmRSS"], status["ram_storage_bytes"], status["staged_high_water_bytes"],
    )


def memory_over(checkpoints: int, ram_dir: Path, *, ram_mib: int = 256) -> MemoryUse:
    """Send so many checkpoints of about 300 pages, every hundredth of 8000, and watch the secondary's memory."""
    ram_bytes = ram_mib * MIB
    use = MemoryUse(ram_bytes)
    with ColoSecondary(ram_dir / "image") as secondary:
        host, _, port = secondary.uri.removeprefix("tcp:").rpartition(":")
        control = ram_dir / "image" / SOCKET_NAME
        with ScriptedPrimary((host, int(port)), ram_bytes) as primary:
            every = max(1, checkpoints // SAMPLES)
            for index in range(checkpoints):
                pages = 8000 if index % 100 == 50 else primary.random.randrange(600)
                primary.checkpoint(primary.change(pages))
                if index % every == every - 1:
                    use.samples.append(sample(secondary, control, index + 1))
            # The first copy goes straight into the image: it is never staged.
            use.largest_checkpoint_bytes = max(r["stream_bytes"] for r in secondary.checkpoints if r["number"])
    return use
