"""A VM in thirty lines, protected: its lines leave only once the checkpoint that knows of them is committed.

Both sides run in this process here; in earnest each has its own machine, and the arbiter's directory is on storage that
both reach: `colo arbiter init DIR --vm NAME` makes it, once.
"""

import tempfile
import threading
import time

from tiny_vm import Counter

from colo import Outbox, Primary, PrimaryConfig, VmSecondary, VmSecondaryConfig
from colo.arbiter import init_arbiter


class Speaker(Counter):
    """The counter of the other example, saying each hundredth number to the world."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__()
        self.outbox = outbox

    def step(self) -> None:
        super().step()
        if self.count % 100 == 0:
            self.outbox.put(self.count)


def main() -> None:
    world: list[int] = []
    first, second = Speaker(Outbox(world.append)), Speaker(Outbox(world.append))
    second.outbox.bypass(True)  # nobody protects the second: what it says leaves at once
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryDirectory() as arbiter:
        init_arbiter(f"file:{arbiter}", vm="example")
        # On one machine a unix socket; between two tcp:HOST:PORT, of a tunnel's end.
        config = VmSecondaryConfig(f"unix:{place}/vm.sock", f"file:{arbiter}")
        with VmSecondary(second, config) as secondary:
            follower = threading.Thread(target=secondary.run)
            follower.start()
            first.resume()
            settings = PrimaryConfig(secondary.address, f"file:{arbiter}", interval_ms=20)
            with Primary(first, settings, outbox=first.outbox) as primary:
                primary.start()
                time.sleep(1)
                secondary.request_failover("the example").result()
                print(f"{primary.wait().ending.value}, after {primary.statistics.checkpoints} checkpoints "
                      f"with a pause of {primary.statistics.pause_ms.as_dict()['p50']} ms")
                time.sleep(0.5)
            follower.join()
    print(f"the first came to {first.count}, the second went on to {second.count}")
    whole = world == [100 * n for n in range(1, len(world) + 1)]
    print(f"the world heard {len(world)} numbers, none lost, none twice: {whole}")
    first.close()
    second.close()


if __name__ == "__main__":
    main()
