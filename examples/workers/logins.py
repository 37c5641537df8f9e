"""Checks a password: each try is held as a failure, and given back if it was right (logins.toml).

    python3 logins.py http://127.0.0.1:8080 bob secret
"""

import sys

from limits import Limits, Refused


def is_right(account, password):
    """Stands for the check."""
    return password == "right"


def main(server, account, password):
    limits = Limits(server)
    try:
        attempt = limits.acquire(limiter="failed_logins", key={"account": account}, hold="1m")
    except Refused as refused:
        print("too many failures, try again in", refused.retry_after, flush=True)
        return
    right = is_right(account, password)
    attempt.settle(0 if right else 1)
    print("welcome" if right else "wrong", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
