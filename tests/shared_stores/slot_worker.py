"""A worker of killed_workers.rs: takes one of the slots, works, and gives it back, again and again.

    python3 slot_worker.py SEED SERVER ...

It writes, by its own clock, since when it has a slot and until when its lease lasts at least ("held 1.0 3.1"), and then
until when it had the slot ("done 1.3"). One that is killed between leaves its slot taken until the lease ends.
"""

import http.client
import random
import sys
import time

from limits import Failed, Limits, Refused


class Servers:
    """Servers of which one is asked, and the next one when that fails."""

    def __init__(self, addresses):
        self.servers = [Limits(address) for address in addresses]

    def call(self, method, message):
        """The answer, or None when none of them answered."""
        for _ in self.servers:
            try:
                return self.servers[0].call(method, message, timeout=10)
            except Refused:
                return None
            except (Failed, OSError, ValueError, http.client.HTTPException) as error:
                if isinstance(error, Failed) and not str(error).startswith("503"):
                    raise
                self.servers.append(self.servers.pop(0))
        return None


def work_with_a_slot(servers):
    asked = {"limiter": "jobs", "max_wait": "5s"}
    granted = servers.call("acquire", asked)
    if granted is None:
        time.sleep(0.02)
        return
    since, lease = time.time(), {"lease": granted["lease"]}
    length = float(granted["lease_ends_in"].removesuffix("s"))
    # When the slot was granted is not known. It ends no earlier than so long after it is renewed.
    until = time.time() + length
    renewed = servers.call("renew", lease | {"length": f"{length}s"})
    if renewed is None or renewed["fate"] != "done":
        # Nothing is sure: it is given back at once.
        until = since
    print("held", since, until, flush=True)
    if until > since:
        time.sleep(random.uniform(0.1, 0.5))
    # One that was held up for so long has lost its slot before.
    print("done", min(time.time(), until), flush=True)
    for _ in range(10):
        if servers.call("release", lease) is not None:
            return
        time.sleep(0.1)


def main(seed, *addresses):
    random.seed(seed)
    servers = Servers(addresses)
    while True:
        work_with_a_slot(servers)


if __name__ == "__main__":
    main(*sys.argv[1:])
