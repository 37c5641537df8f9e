"""Calls a language model: holds an estimate of its tokens first, and settles what was used (tokens.toml).

    python3 tokens.py http://127.0.0.1:8080 bob 400 150
"""

import sys

from limits import Limits, Refused


def ask_model(used):
    """Stands for the call. Returns the tokens that it used."""
    return used


def main(server, account, estimate, used):
    limits = Limits(server)
    try:
        # Longer than the longest answer: a hold that nobody settles stays charged.
        hold = limits.acquire(limiter="tokens", key={"account": account}, cost=estimate, hold="5m", max_wait="0s")
    except Refused as refused:
        print("refused", refused.retry_after, flush=True)
        return
    print("settled", hold.settle(ask_model(used)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
