"""A worker that calls a third party which admits so many calls a second (third_party.toml).

    python3 third_party.py http://127.0.0.1:8080 10
"""

import sys
import time

from limits import Limits


def call_third_party():
    """Stands for the call."""


def main(server, calls):
    limits = Limits(server)
    for _ in range(calls):
        # Returns when it is our turn: there is nothing to poll, and no sleep to guess.
        limits.acquire(limiter="stripe_api")
        print(time.time(), flush=True)
        call_third_party()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
