"""An upload that holds a slot for as long as it runs, however long that is (uploads.toml).

    python3 uploads.py http://127.0.0.1:8080 bob 90
"""

import sys
import time

from limits import Limits


def upload(length, lost):
    """Stands for the upload. Returns whether it was finished."""
    until = time.monotonic() + length
    while time.monotonic() < until:
        # The slot may be another's soon, so nothing is uploaded any more.
        if lost.wait(0.05):
            return False
    return True


def main(server, account, length):
    limits = Limits(server)
    with limits.acquire(
        asks=[{"limiter": "uploads"}, {"limiter": "uploads_of_account", "key": {"account": account}}]
    ) as slot:
        begun = time.time()
        print("begun", begun, flush=True)
        finished = upload(length, slot.lost)
        print("finished" if finished else "lost", time.time(), flush=True)
    return 0 if finished else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
