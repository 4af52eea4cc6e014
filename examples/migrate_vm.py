"""A running VM moves to another one of the same memory, over a link that is slower than the VM writes.

Both sides run in this process here; in earnest each has its own machine. The destination may be a QEMU as well.
"""

import tempfile
import threading
import time

from tiny_vm import Counter

from colo import MigrationDestination, MigrationDestinationConfig, MigrationSource, MigrationSourceConfig


def say(kind: str, data: object) -> None:
    """What the migration tells."""
    if kind == "round":
        print(f"round {data.number}: {data.pages} pages in {data.seconds:.2f} s, {data.dirty_pages} dirty again, "
              f"to be sent in {data.expected_downtime_ms:.0f} ms")
    elif kind in ("status", "throttle"):
        print(f"{kind}: {data}")


def main() -> None:
    first, second = Counter(), Counter()
    first.resume()
    time.sleep(0.5)
    with tempfile.TemporaryDirectory() as place, MigrationDestination(
            second, MigrationDestinationConfig(f"unix:{place}/vm.sock")) as destination:
        arriving = threading.Thread(target=destination.run)
        arriving.start()
        config = MigrationSourceConfig(
            destination.address, downtime_limit_ms=30, max_bandwidth_bytes_per_s=12 << 20, auto_converge=True)
        with MigrationSource(first, config, on_event=say) as migration:
            outcome = migration.run()
            ram = migration.status()["ram"]
            print(f"{outcome.status.value}: {outcome.reason}; {ram['transferred'] >> 10} KiB in {outcome.total_ms:.0f} ms, "
                  f"the VM stood still for {outcome.downtime_ms:.1f} ms")
        arriving.join()
    at_switchover = first.count
    time.sleep(0.5)
    print(f"the first stopped at {at_switchover} and stays there: {first.count == at_switchover}; "
          f"the second went on to {second.count}")
    first.close()
    second.close()


if __name__ == "__main__":
    main()
