"""A client of tollgate's API for workers, made of Python's standard library alone.

    limits = Limits("http://127.0.0.1:8080", domain="jobs")
    limits.acquire(limiter="stripe_api", max_wait="30s")          # returns when it is this worker's turn
    with limits.acquire(limiter="uploads", key={"account": "bob"}) as slot:
        upload()                                                  # the slot is renewed meanwhile, and released after it
"""

import http.client
import json
import threading
import time
import urllib.parse


class Refused(Exception):
    """Not granted, and nothing was taken. `retry_after` is in seconds, or None if waiting does not help."""

    def __init__(self, answer):
        super().__init__(answer.get("detail") or answer.get("title") or answer.get("reason"))
        self.reason = answer.get("reason")
        milliseconds = answer.get("retry_after_ms")
        self.retry_after = None if milliseconds is None else milliseconds / 1000


class Failed(Exception):
    """The call was wrong, or the server could not answer it."""


class Limits:
    """A server. Each thread has its own connection to it, which stays open."""

    def __init__(self, server, domain=None, token=None):
        self.server = urllib.parse.urlsplit(server)
        self.domain = domain
        self.token = token
        self.threads = threading.local()

    def acquire(self, **asked):
        """Takes what is asked for, waiting for it up to `max_wait` or as long as the limiter says."""
        if self.domain is not None:
            asked.setdefault("domain", self.domain)
        return Lease(self, self.call("acquire", asked))

    def call(self, method, message, timeout=660):
        """Posts a message and returns the answer. An acquire is answered when its wait is over."""
        headers = {"content-type": "application/json"}
        if self.token is not None:
            headers["authorization"] = f"Bearer {self.token}"
        try:
            connection = self.threads.connection
        except AttributeError:
            connection = http.client.HTTPConnection(self.server.hostname, self.server.port)
            self.threads.connection = connection
        connection.timeout = timeout
        kept = connection.sock is not None
        if kept:
            connection.sock.settimeout(timeout)
        request = ("POST", f"/v1/{method}", json.dumps(message), headers)
        try:
            status, answer = self.exchange(connection, request)
        except ConnectionError:
            # The server has closed a connection that was idle, or was restarted. What a lost answer took is given back.
            if not kept:
                raise
            status, answer = self.exchange(connection, request)
        if status == 200:
            return answer
        if status == 429 or status == 503 and "reason" in answer:
            raise Refused(answer)
        raise Failed(f"{status}: {answer.get('detail') or answer}")

    @staticmethod
    def exchange(connection, request):
        try:
            connection.request(*request)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except Exception:
            connection.close()
            raise


class Lease:
    """What was granted. A `with` block renews slots and holds while it runs, and gives them back at its end."""

    def __init__(self, limits, answer):
        self.limits = limits
        self.units = answer["units"]
        self.text = answer.get("lease")
        self.lost = threading.Event()
        self.ended = threading.Event()
        self.renewing = None
        if answer.get("lease_ends_in") is None:
            self.text = None  # what only rules in shadow took ends by itself
        if self.text is not None:
            self.length = seconds(answer["lease_ends_in"])
            self.until = time.monotonic() + self.length

    def __enter__(self):
        if self.text is not None:
            self.renewing = threading.Thread(target=self.keep_renewing, daemon=True)
            self.renewing.start()
        return self

    def stop_renewing(self):
        self.ended.set()
        if self.renewing is not None:
            self.renewing.join()

    def __exit__(self, *_):
        self.stop_renewing()
        if self.text is not None:
            try:
                self.limits.call("release", {"lease": self.text})
            except (Refused, Failed, OSError):
                pass  # it ends by itself

    def keep_renewing(self):
        """Renews at each third of the length. Sets `lost` before another can have the slot."""
        while not self.ended.wait(self.length / 3):
            asked = time.monotonic()
            try:
                asks = {"lease": self.text, "length": f"{self.length:.3f}s"}
                renewed = self.limits.call("renew", asks, timeout=self.length / 3)
            except (Refused, Failed, OSError):
                renewed = None
            if renewed is not None and renewed["fate"] == "done":
                self.until = asked + self.length
            elif renewed is not None or time.monotonic() + self.length / 3 > self.until:
                self.lost.set()
                return

    def settle(self, units):
        """Corrects what a hold has charged to what was used, and ends the lease."""
        self.stop_renewing()
        lease, self.text = self.text, None
        return self.limits.call("settle", {"lease": lease, "units": units})["fate"]


def seconds(text):
    """The seconds of a duration such as "1.5s"."""
    return float(text.removesuffix("s"))
