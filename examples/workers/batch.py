"""A nightly batch that sends as many as the budget has left, and says how many wait for tomorrow (batch.toml).

    python3 batch.py http://127.0.0.1:8080 customer-7 25000
"""

import sys

from limits import Limits, Refused

CHUNK = 500


def send(count):
    """Stands for the work."""
    print("sent", count, flush=True)


def main(server, account, items):
    limits = Limits(server)
    left = items
    while left:
        try:
            # As many of the chunk as there are, at least one.
            granted = limits.acquire(
                limiter="emails", key={"account": account}, cost=min(left, CHUNK), partial=True
            )
        except Refused as refused:
            print("left", left, "until", refused.retry_after, flush=True)
            return
        send(granted.units)
        left -= granted.units
    print("left", 0, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
