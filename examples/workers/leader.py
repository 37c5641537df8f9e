"""A candidate that leads while it holds the only slot (leader.toml). This is no fencing: see docs/workers.md.

    python3 leader.py http://127.0.0.1:8080 nightly-report 60
"""

import sys
import time

from limits import Failed, Limits, Refused


def lead(lost, length):
    """Stands for what only the leader does. It looks at `lost` before each step."""
    until = time.monotonic() + length
    while time.monotonic() < until and not lost.wait(0.02):
        pass


def main(server, job, length):
    limits = Limits(server)
    while True:
        try:
            slot = limits.acquire(limiter="leader", key={"job": job})
        except (Refused, Failed, OSError):
            print("standing by", time.time(), flush=True)
            time.sleep(0.2)
            continue
        with slot:
            print("leading", time.time(), flush=True)
            lead(slot.lost, length)
            print("stepping down", time.time(), flush=True)
        if not slot.lost.is_set():
            return


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
