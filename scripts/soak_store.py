"""A real Redis under the soak, and what it must have counted.

It loses its connections, stalls for 0.3 s and changes its password while two tollgates count in it and restart. Its
limiters deny when it does not answer, so nothing passes without it: no account is ever admitted more often than its
limit, no more slots are held than there are, and in the end every slot is free.
"""

import collections
import contextlib
import re
import shutil
import signal
import socket
import threading
import time

import demo

LIMIT, SLOTS = 200, 4
DOMAIN = b"shared"
# Accounts of charges are new every so often, so that there is always something to admit. Those of slots stay.
GENERATION_SECONDS, ACCOUNTS = 10, 5
# Threads of each kind.
CALLERS = 4
STALL_SECONDS = 0.3
# How long slots may take to be free once all are released. Their leases are longer.
FREED_WITHIN = 30

RULES = f"""
[stores.shared]
engine = "redis"
url = "redis://127.0.0.1:PORT/0"
password = "${{file:PASSWORD}}"
timeout = "50ms"

[limiters.shared]
store = "shared"
algorithm = "fixed_window"
alignment = "first_hit"
limit = {LIMIT}
window = "24h"
on_store_error = "deny"

[limiters.slots]
store = "shared"
max_concurrent = {SLOTS}
lease = "24h"
on_store_error = "deny"

[[rules]]
domain = "shared"
name = "shared"
match = {{ shared = "*" }}
apply = [{{ limiter = "shared", key = ["shared"] }}]

[[rules]]
domain = "shared"
name = "slots"
match = {{ slots = "*" }}
apply = [{{ limiter = "slots", key = ["slots"] }}]
"""


class Closed(ConnectionError):
    """A connection that the server closed before it replied."""


class Store:
    """The Redis. All its passwords are valid until they are withdrawn."""

    def __init__(self, directory, port, start):
        self.port, self.file = port, directory / "redis-password"
        self.passwords = ["password-0"]
        self.file.write_text(self.passwords[0])
        redis = shutil.which("redis-server") or shutil.which("valkey-server")
        if not redis:
            raise demo.Failure("there is no redis-server on PATH: `make servers` installs one")
        start("redis", [redis, "--bind", "127.0.0.1", "--port", port, "--save", "", "--dir", directory, "--requirepass", self.passwords[0]])
        deadline = time.monotonic() + 20
        while not self.answers():
            if time.monotonic() > deadline:
                raise demo.Failure("the Redis does not start")
            time.sleep(0.02)

    def answers(self):
        with contextlib.suppress(OSError):
            return bool(self.command("PING"))

    def rules(self):
        """The part of a configuration that counts in it."""
        return RULES.replace("PORT", str(self.port)).replace("PASSWORD", str(self.file))

    def command(self, *words):
        """Sends a command that can be repeated: a reset may end its connection. Returns the first line of the reply."""
        for attempt in range(5):
            try:
                return self.send(*words)
            except (ConnectionResetError, BrokenPipeError, Closed):
                if attempt == 4:
                    raise

    def send(self, *words):
        """Sends a command over a connection of its own. Returns the first line of the reply."""
        with contextlib.closing(socket.create_connection(("127.0.0.1", self.port), timeout=10)) as client:
            for part in (("AUTH", self.passwords[-1]), words):
                client.sendall(b"*%d\r\n" % len(part) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word.encode()) for word in part))
                reply = b""
                while not reply.endswith(b"\r\n"):
                    more = client.recv(4096)
                    if not more:
                        raise Closed("the server closed the connection")
                    reply += more
                if reply.startswith(b"-"):
                    raise ConnectionError(reply.decode().strip())
        return reply

    def reset(self):
        self.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def stall(self, process):
        process.send_signal(signal.SIGSTOP)
        time.sleep(STALL_SECONDS)
        process.send_signal(signal.SIGCONT)

    def rotate(self):
        """Adds a password, and writes it to the file."""
        fresh = f"password-{int(self.passwords[-1].split('-')[1]) + 1}"
        self.command("ACL", "SETUSER", "default", ">" + fresh)
        temporary = self.file.with_name("fresh-password")
        temporary.write_text(fresh)
        temporary.rename(self.file)
        self.passwords.append(fresh)

    def withdraw(self):
        """Withdraws all passwords but the latest. Connections that are open stay."""
        latest = self.passwords[-1]
        self.command("ACL", "SETUSER", "default", "resetpass", ">" + latest)
        self.passwords = [latest]


class Counts:
    """What the store admitted, and the slots that are held."""

    def __init__(self):
        self.lock = threading.Lock()
        self.began = time.monotonic()
        self.admitted, self.held = collections.Counter(), collections.Counter()
        self.most_held, self.by_policy = 0, 0

    def account(self, dice):
        generation = int((time.monotonic() - self.began) / GENERATION_SECONDS)
        return f"{generation}-{dice.randrange(ACCOUNTS)}"

    def answered(self, account, answer):
        with self.lock:
            self.admitted[account] += admits(answer)
            self.by_policy += is_by_policy(answer)

    def hold(self, account, more):
        """Counts a slot after it is acquired and before it is released, so never more than are held."""
        with self.lock:
            self.held[account] += more
            self.most_held = max(self.most_held, self.held[account])

    def over(self):
        """Units admitted over the limits."""
        return sum(max(0, admitted - LIMIT) for admitted in self.admitted.values())


def admits(answer):
    return answer[:2] == b"\x08\x01"


def is_by_policy(answer):
    """Whether a refusal names no limit: then the store did not decide it."""
    return not admits(answer) and not any(number == 2 for status in fields(answer, 2) for number, _ in split(status))


def lease(answer):
    """The lease in the metadata of an answer: an entry of a map with this key and a value that is a string."""
    found = re.search(rb"\n\x05lease\x12.\x1a(.)", answer, re.DOTALL)
    return found and answer[found.end() : found.end() + found.group(1)[0]].decode()


def fields(message, number):
    return [value for other, value in split(message) if other == number]


def split(message):
    """The fields of a message of protobuf: varints, and bytes with a length."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
        else:
            assert tag & 7 == 2, "neither a varint nor bytes"
            length = varint()
            at += length
            yield tag >> 3, message[at - length : at]
