"""A worker that delivers webhooks from a queue: five at once to each endpoint, and one slow endpoint holds up no other
(webhooks.toml). Here the queue is standard input, with an endpoint on each line.

    python3 webhooks.py http://127.0.0.1:8080 < endpoints.txt
"""

import heapq
import sys
import threading
import time
import urllib.request

from limits import Limits, Refused

THREADS = 16


def deliver(endpoint):
    """Stands for the delivery."""
    urllib.request.urlopen(urllib.request.Request(endpoint, data=b"{}"), timeout=10).read()


def say(what, endpoint):
    """Prints a line, as a whole although several threads print."""
    print(f"{what} {endpoint}\n", end="", flush=True)


class Queue:
    """Deliveries, each with the time before which it is not tried."""

    def __init__(self, endpoints):
        self.waiting = [(0, number, endpoint) for number, endpoint in enumerate(endpoints)]
        self.left = len(self.waiting)
        self.lock = threading.Lock()

    def next(self):
        """The next delivery that is due. Nothing when all are done."""
        while self.left:
            with self.lock:
                if self.waiting and self.waiting[0][0] <= time.monotonic():
                    return heapq.heappop(self.waiting)
            time.sleep(0.01)
        return None

    def requeue(self, delivery, after):
        _, number, endpoint = delivery
        with self.lock:
            heapq.heappush(self.waiting, (time.monotonic() + after, number, endpoint))

    def done(self):
        with self.lock:
            self.left -= 1


def work(limits, queue):
    while (delivery := queue.next()) is not None:
        _, _, endpoint = delivery
        try:
            # Both or neither: a full endpoint uses up nothing of the rate.
            slot = limits.acquire(
                asks=[{"limiter": "webhook_endpoint", "key": {"endpoint": endpoint}}, {"limiter": "webhook_all"}]
            )
        except Refused as refused:
            say("requeued", endpoint)
            queue.requeue(delivery, min(refused.retry_after or 1, 1))
            continue
        with slot:
            try:
                deliver(endpoint)
            except OSError:
                say("failed", endpoint)
                queue.requeue(delivery, 5)
                continue
        say("delivered", endpoint)
        queue.done()


def main(server):
    queue = Queue(line.strip() for line in sys.stdin)
    limits = Limits(server)
    threads = [threading.Thread(target=work, args=(limits, queue)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1])
