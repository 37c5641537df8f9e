#!/usr/bin/env python3
"""Starts a real Envoy with tollgate behind it and plays a story that shows limits at work.

    make demo       plays the story; fails if a response differs from the expected one
    make demo-up    leaves the gateway running and prints requests to try

With STORE=redis or STORE=postgres, Envoy calls two tollgates in turn, which share such a store. The story is the same.

The rules are in gateway.toml, the Envoy configuration is gateway.yaml, both next to this file. Everything listens on
free loopback ports and is stopped at the end.
"""

import argparse
import concurrent.futures
import contextlib
import http.client
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
PROJECT = HERE.parent.parent

# The headers that explain an answer.
PASSED = ["x-rule", "x-ratelimit-limit", "x-ratelimit-remaining"]
REFUSED = ["x-rule", "x-ratelimit-limit", "ratelimit", "retry-after"]


# Signals that end the demo: from a supervisor, from Ctrl-C, and from a closed terminal.
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Failure(Exception):
    """The demo cannot continue, for the reason in the text."""


# --- The gateway ---------------------------------------------------------------------------------------------------


class Gateway:
    """tollgate, an upstream and Envoy on free ports, for as long as the `with` block lasts.

    With a store there are two tollgates that share it."""

    # The ports in the files, by their names here.
    PORTS = {"rls": 10000, "authz_grpc": 10001, "authz_http": 10002, "grpc": 8081, "http": 8080, "upstream": 9000, "admin": 9901, "grpc2": 8181, "http2": 8180, "tollgate": 9090, "tollgate2": 9190, "store": 0}

    def __init__(self, tollgate, envoy, store=None):
        self.tollgate, self.envoy, self.store = tollgate, envoy, store
        self.directory, self.processes = None, []

    def __enter__(self):
        try:
            with undisturbed():
                self.directory = pathlib.Path(tempfile.mkdtemp(prefix="tollgate-demo-"))
            self.ports = dict(zip(self.PORTS, free_ports(len(self.PORTS))))
            rules = self.rewrite("gateway.toml")
            envoy = self.rewrite("gateway.yaml")
            self.start("upstream", [sys.executable, HERE / "upstream.py", "--port", self.ports["upstream"]])
            if self.store:
                self.share(rules)
            self.start("tollgate", [self.tollgate, "serve", "--config", rules])
            self.start("envoy", [self.envoy, "-c", envoy, "--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"])
            self.wait_for("upstream", "upstream", "/")
            self.wait_for("tollgate", "http", "/healthcheck")
            if self.store:
                self.wait_for("tollgate 2", "http2", "/healthcheck")
            self.wait_for("envoy", "admin", "/ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        ignore_stops()
        for _, process in reversed(self.processes):
            process.terminate()
        for _, process in self.processes:
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self.directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    def rewrite(self, name):
        """Copies a file of this directory, with this gateway's ports and loopback addresses."""
        text = (HERE / name).read_text()
        if self.store:
            # Envoy calls both in turn.
            for written in (8080, 8081):
                text = re.sub(rf"( *- endpoint: .*port_value: ){written}(.*\n)", rf"\g<0>\g<1>{written + 100}\g<2>", text)
        for port, written in self.PORTS.items():
            text = re.sub(rf"(port_value: |:){written}\b", rf"\g<1>{self.ports[port]}", text)
        text = re.sub(r"address: (0\.0\.0\.0|tollgate|upstream)\b", "address: 127.0.0.1", text)
        # A long timeout, so that a busy machine does not change the story.
        text = text.replace("timeout: 0.25s", "timeout: 5s")
        # No load balancer has to notice the shutdown.
        text = text.replace("[server]\n", f"[server]\ndrain_delay = \"0s\"\nadmin = \"127.0.0.1:{self.ports['tollgate']}\"\n")
        path = self.directory / name
        path.write_text(text)
        return path

    def share(self, rules):
        """Starts a store and a second tollgate. These rules count in the store, for both tollgates."""
        url = {"redis": self.start_redis, "postgres": self.start_postgres}[self.store]()
        text = rules.read_text()
        text += f'\n[stores.main]\nengine = "{self.store}"\nurl = "{url}"\nrequired = true\n'
        # A long timeout, so that a busy machine does not change the story.
        text += 'timeout = "5s"\n'
        rules.write_text(text)
        for port in ("grpc", "http", "tollgate"):
            text = text.replace(f":{self.ports[port]}\"", f":{self.ports[port + '2']}\"")
        second = rules.with_name("second.toml")
        second.write_text(text)
        self.start("tollgate 2", [self.tollgate, "serve", "--config", second])

    def start_redis(self):
        redis = shutil.which("redis-server") or shutil.which("valkey-server")
        if not redis:
            raise Failure("there is no redis-server on PATH: `make servers` installs one")
        port = self.ports["store"]
        self.start("redis", [redis, "--bind", "127.0.0.1", "--port", port, "--save", "", "--dir", self.directory])
        return f"redis://127.0.0.1:{port}/0"

    def start_postgres(self):
        programs = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        found = shutil.which("initdb")
        directory = pathlib.Path(found).parent if found else programs[-1] if programs else None
        if not directory:
            raise Failure("there is no PostgreSQL: `make servers` installs one")
        data, who = self.directory / "postgres", []
        data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            # PostgreSQL does not run as root.
            who = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--"]
            self.directory.chmod(0o711)
            shutil.chown(data, "postgres", "postgres")
        initdb = [directory / "initdb", "-D", data, "-U", "tollgate", "--auth=trust", "-E", "UTF8", "--no-locale"]
        made = subprocess.run([*who, *initdb], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/")
        if made.returncode != 0:
            raise Failure(f"initdb failed:\n{made.stdout}")
        port = self.ports["store"]
        settings = [f"port={port}", "listen_addresses=127.0.0.1", "unix_socket_directories="]
        self.start("postgres", [*who, directory / "postgres", "-D", data, *(f"--{setting}" for setting in settings)])
        return f"postgres://tollgate@127.0.0.1:{port}/postgres"

    def start(self, name, command):
        log = open(self.directory / f"{name}.log", "wb")
        with log, undisturbed():
            # A session of its own: Ctrl-C is for this script, which then stops everything in order.
            try:
                process = subprocess.Popen(
                    [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            except OSError as error:
                raise Failure(f"cannot run {command[0]}: {error.strerror}")
            self.processes.append((name, process))

    def wait_for(self, name, port, path):
        process = dict(self.processes)[name]
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if ask(self.ports[port], "GET", path).status == 200:
                    return
            if process.poll() is not None or time.monotonic() > deadline:
                log = (self.directory / f"{name}.log").read_text(errors="replace")
                state = "did not start" if process.poll() is None else f"ended with {process.returncode}"
                raise Failure(f"{name} {state}:\n{log[-4000:]}")
            time.sleep(0.02)

    def pass_through(self, path, account):
        """The response to a request of this account through the first door."""
        return ask(self.ports["rls"], "GET", path, {"x-account": account})

    def active(self):
        """The number of requests from Envoy to the upstream that are in flight."""
        stats = ask(self.ports["admin"], "GET", "/stats?filter=^cluster.upstream.upstream_rq_active$").body
        return int(stats.split(":")[1])

    def until_active(self, count):
        deadline = time.monotonic() + 10
        while self.active() != count:
            if time.monotonic() > deadline:
                raise Failure(f"the upstream never had {count} requests at a time")
            time.sleep(0.01)


def free_ports(count):
    """Free ports, reserved together so that they differ."""
    with contextlib.ExitStack() as sockets:
        ports = []
        for _ in range(count):
            sock = sockets.enter_context(socket.socket())
            sock.bind(("127.0.0.1", 0))
            ports.append(sock.getsockname()[1])
        return ports


class Answer:
    def __init__(self, response):
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read().decode(errors="replace")


def ask(port, method, path, headers={}):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        return Answer(connection.getresponse())


# --- Being stopped -------------------------------------------------------------------------------------------------


def interrupt(*_):
    ignore_stops()
    raise KeyboardInterrupt


def ignore_stops():
    """Ignores further stops during cleanup: a second Ctrl-C must not interrupt it."""
    for stop in STOPS:
        signal.signal(stop, signal.SIG_IGN)


@contextlib.contextmanager
def undisturbed():
    """Delays a stop until the end of the block, so that everything started there is cleaned up."""
    came = []
    waiting = [stop for stop in STOPS if signal.getsignal(stop) is interrupt]
    for stop in waiting:
        signal.signal(stop, lambda *_: came.append(True))
    try:
        yield
    finally:
        for stop in waiting:
            signal.signal(stop, interrupt)
        if came:
            interrupt()


# --- The requests and their answers ------------------------------------------------------------------------------


class Story:
    """Sends requests, shows the responses, and records those that differ from the expected ones."""

    def __init__(self, gateway):
        self.gateway = gateway
        self.wrong = 0
        self.colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        # Repeated lines are shortened: the form of the last line, and how many like it were left out.
        self.shape, self.left_out = None, 0

    def chapter(self, text):
        self.flush()
        print(f"\n{self.paint('1', text)}", flush=True)

    def say(self, text):
        self.flush()
        print(f"  {self.paint('2', text)}", flush=True)

    def request(self, method, path, expected, account=None, address=None, tier=None, door="rls", expected_headers={}, shown=None):
        """Sends a request and shows it. `expected_headers` are patterns of headers that the response must have."""
        headers = {}
        if account:
            headers["x-account"] = account
        if tier:
            headers["x-tier"] = tier
        if address:
            headers["x-forwarded-for"] = address
        answer = ask(self.gateway.ports[door], method, path, headers)
        self.show(method, path, expected, answer, account, address, tier, expected_headers, shown)
        return answer

    def show(self, method, path, expected, answer, account=None, address=None, tier=None, expected_headers={}, shown=None):
        who = " ".join(
            f"{name}={value}" for name, value in (("account", account), ("tier", tier), ("from", address)) if value
        )
        names = shown or (REFUSED if answer.status == 429 else PASSED)
        headers = "  ".join(f"{name}: {answer.headers[name]}" for name in names if name in answer.headers)
        colour = "31" if answer.status in (429, 503) else "33" if answer.status >= 400 else "32"
        problems = []
        if answer.status != expected:
            problems.append(f"expected {expected}")
        if answer.status == 429 and not answer.headers.get("retry-after", "").isdigit():
            problems.append("expected a retry-after in whole seconds")
        for name, value in expected_headers.items():
            if not re.fullmatch(value, answer.headers.get(name, "")):
                problems.append(f"expected {name}: {value}, not {answer.headers.get(name)!r}")

        shape = (method, path, re.sub(r"\d+", "", who), answer.status, answer.headers.get("x-rule"))
        if shape == self.shape and not problems and self.seen >= 3:
            self.left_out += 1
            return
        if shape != self.shape or problems:
            self.flush()
            self.shape, self.seen = shape, 0
        self.seen += 1
        self.line(method, path, who, self.paint(colour, answer.status), headers)
        for problem in problems:
            self.fail(problem)

    def line(self, method, path, who, status, headers):
        print(f"  {method:4} {path:18} {who:34} {status}  {headers}", flush=True)

    def check(self, holds, text):
        """Checks an expectation that is not about a single response."""
        if not holds:
            self.flush()
            self.fail(text)

    def fail(self, text):
        self.wrong += 1
        print(f"       {self.paint('1;31', 'UNEXPECTED: ' + text)}", flush=True)

    def flush(self):
        if self.left_out:
            print(f"       ... {self.left_out} more like that", flush=True)
        self.shape, self.left_out, self.seen = None, 0, 0

    def paint(self, colour, text):
        return f"\033[{colour}m{text}\033[0m" if self.colours else str(text)


def one_account_from_many_addresses(story):
    story.chapter("(a) One account, attacked from 40 addresses")
    story.say("Five tries per account in five minutes, wherever they come from. A 401 is the upstream's: wrong password.")
    for n in range(1, 41):
        expected = 401 if n <= 5 else 429
        expected_headers = {"x-rule": "login"} if expected == 429 else {"x-ratelimit-remaining": str(5 - n)}
        story.request("POST", "/login", expected, account="ada", address=f"203.0.113.{n}", expected_headers=expected_headers)
    story.say("Other accounts log in as ever.")
    story.request("POST", "/login", 401, account="bob", address="203.0.113.99", expected_headers={"x-ratelimit-remaining": "4"})
    story.request("POST", "/login", 401, account="cyd", address="203.0.113.7", expected_headers={"x-ratelimit-remaining": "4"})


def many_accounts_from_one_address(story):
    story.chapter("(b) One address that tries many accounts")
    story.say("Thirty tries per address in a minute, whatever accounts they name.")
    attacker, elsewhere = "198.51.100.1", "192.0.2.50"
    by_address = {"x-ratelimit-limit": '30, 30;w=60;name="login_address"'}
    for n in range(1, 33):
        expected, expected_headers = (401, {}) if n <= 30 else (429, by_address)
        story.request("POST", "/login", expected, account=f"user{n}", address=attacker, expected_headers=expected_headers)
    story.say("It goes on, hammering an account it has not tried yet. Every try is refused for the address's sake ...")
    for _ in range(20):
        story.request("POST", "/login", 429, account="victim", address=attacker, expected_headers=by_address)
    story.say("... and cost the account nothing: from another address it has all five tries. All or nothing.")
    for n in range(1, 6):
        story.request("POST", "/login", 401, account="victim", address=elsewhere, expected_headers={"x-ratelimit-remaining": str(5 - n)})
    by_account = {"x-ratelimit-limit": '5, 5;w=300;name="login_account"'}
    story.request("POST", "/login", 429, account="victim", address=elsewhere, expected_headers=by_account)
    story.say("Leaving out the account does not open the address's limit, neither for the attacker ...")
    story.request("POST", "/login", 429, address=attacker)
    story.say("... nor for an address that never names one.")
    for n in range(1, 33):
        story.request("POST", "/login", 401 if n <= 30 else 429, address="198.51.100.2")
    story.say("Nor does another spelling of the path.")
    for path in ("//login", "/%6Cogin", "/x/../login", "/login?a=1"):
        story.request("POST", path, 429, address="198.51.100.2")


def tiers(story):
    story.chapter("(c) What each tier sells: 3, 6 and 12 requests a minute")
    for account, tier, limit in (("fay", "free", 3), ("pia", "pro", 6), ("eve", "enterprise", 12)):
        for n in range(1, limit + 1):
            expected_headers = {"x-rule": "quota", "x-ratelimit-limit": f"{limit}, {limit};w=60.*", "x-ratelimit-remaining": str(limit - n)}
            story.request("GET", "/api", 200, account=account, tier=tier, expected_headers=expected_headers)
        story.request("GET", "/api", 429, account=account, tier=tier, expected_headers={"x-rule": "quota"})
    story.say("Another free account has used nothing.")
    story.request("GET", "/api", 200, account="gus", tier="free", expected_headers={"x-ratelimit-remaining": "2"})
    story.say("The free account buys pro. It has used three, so three of its six are left.")
    for n in range(1, 4):
        story.request("GET", "/api", 200, account="fay", tier="pro", expected_headers={"x-ratelimit-remaining": str(3 - n)})
    story.request("GET", "/api", 429, account="fay", tier="pro")


def two_at_a_time(story):
    story.chapter("(d) A slow endpoint: two requests per account at a time")
    gateway, path = story.gateway, "/slow?seconds=1.5"
    story.say("Two requests start, and stay.")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        running = [pool.submit(gateway.pass_through, path, "hal") for _ in range(2)]
        gateway.until_active(2)
        for _ in running:
            story.line("GET", path, "account=hal", "...", "running")
        story.say("A third finds no slot.")
        story.request("GET", "/slow?seconds=0", 429, account="hal", expected_headers={"x-rule": "slow"})
        story.say("Another account has slots of its own.")
        story.request("GET", "/slow?seconds=0", 200, account="ida")
        story.say("The two come to their end ...")
    for answer in running:
        story.show("GET", path, 200, answer.result(), account="hal")
    story.say("... Envoy says so to tollgate, and both slots are free again.")
    two_again(story, path, "hal")
    story.say("A client that walks away frees its slot as well.")
    with socket.create_connection(("127.0.0.1", gateway.ports["rls"])) as client:
        client.sendall(b"GET /slow?seconds=30 HTTP/1.1\r\nhost: demo\r\nx-account: kim\r\n\r\n")
        gateway.until_active(1)
    gateway.until_active(0)
    two_again(story, path, "kim")


def two_again(story, path, account):
    """Two requests at a time pass. The release is a separate call, so the first tries may precede it."""
    gateway = story.gateway
    deadline = time.monotonic() + 5
    while True:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            answers = list(pool.map(gateway.pass_through, ["/slow?seconds=0.2"] * 2, [account] * 2))
        if all(answer.status == 200 for answer in answers) or time.monotonic() > deadline:
            break
    for answer in answers:
        story.show("GET", "/slow?seconds=0.2", 200, answer, account=account)


def through_ext_authz(story):
    for number, (door, name, account) in enumerate(
        [("authz_grpc", "gRPC", "lea"), ("authz_http", "HTTP", "mia")], start=1
    ):
        story.chapter(f"(e) {name}: the same login rule, asked through ext_authz")
        for n in range(1, 8):
            passes = n <= 5
            expected_headers = {
                "x-ratelimit-limit": "5",
                "x-ratelimit-remaining": str(max(5 - n, 0)),
                "ratelimit-policy": '"login_address";q=30;w=60, "login_account";q=5;w=300',
                "ratelimit": rf'"login_account";r={max(5 - n, 0)};t=\d+',
            }
            shown = ["x-ratelimit-limit", "ratelimit"] + ([] if passes else ["retry-after"])
            address = f"203.0.113.{100 * number + n}"
            answer = story.request("POST", "/login", 401 if passes else 429, account, address, door=door, expected_headers=expected_headers, shown=shown)
        kind = answer.headers.get("content-type", "")
        story.check(kind == "application/problem+json", f"expected a problem+json body, not {kind!r}")
        story.say("The body of the refusal: " + answer.body.strip())
        story.say("Another account is served.")
        address = f"203.0.113.{100 * number + 20}"
        expected_headers = {"x-ratelimit-remaining": "4"}
        story.request("POST", "/login", 401, account=f"not-{account}", address=address, door=door, expected_headers=expected_headers, shown=["ratelimit-policy"])


def play(gateway):
    story = Story(gateway)
    began = time.monotonic()
    for chapter in (one_account_from_many_addresses, many_accounts_from_one_address, tiers, two_at_a_time, through_ext_authz):
        chapter(story)
        story.flush()
    for log in gateway.directory.glob("tollgate*.log"):
        lines = [line for line in log.read_text(errors="replace").splitlines() if "mistake=" in line]
        story.check(not lines, f"expected no mistake of Envoy in the log: {lines}")
    took = time.monotonic() - began
    if story.wrong:
        print(f"\n{story.paint('1;31', f'{story.wrong} results were unexpected')} ({took:.1f} s)")
        return 1
    print(f"\n{story.paint('1;32', 'Everything was as expected')} ({took:.1f} s)")
    return 0


def leave_running(gateway):
    rls, grpc, plain = (gateway.ports[door] for door in ("rls", "authz_grpc", "authz_http"))
    admins = [gateway.ports[name] for name in ("tollgate", "tollgate2")[: 2 if gateway.store else 1]]
    tops = "\n".join(f"    {gateway.tollgate} top --server 127.0.0.1:{admin}" for admin in admins)
    metrics = " and ".join(f"http://localhost:{admin}/metrics" for admin in admins)
    print(f"""
The gateway is up. Its rules are in examples/envoy/gateway.toml. Some requests to try, over and over:

  a login (5 per account, 30 per address; X-Forwarded-For plays the load balancer in front)
    curl -i -X POST -H 'x-account: ada' -H 'x-forwarded-for: 203.0.113.1' localhost:{rls}/login
  a login with the right password
    curl -i -X POST -H 'x-account: bob' -H 'x-password: secret' localhost:{rls}/login
  a tier: free, pro or enterprise
    curl -i -H 'x-account: fay' -H 'x-tier: free' localhost:{rls}/api
  a slow request, of which an account has two at a time
    for i in 1 2 3; do curl -s -o /dev/null -w '%{{http_code}}\\n' -H 'x-account: hal' 'localhost:{rls}/slow?seconds=5' & done; wait
  the login through ext_authz, over gRPC and over plain HTTP
    curl -i -X POST -H 'x-account: lea' localhost:{grpc}/login
    curl -i -X POST -H 'x-account: mia' localhost:{plain}/login

  who was refused most, as each tollgate saw it
{tops}

The metrics are at {metrics}.
Envoy's admin page is at http://localhost:{gateway.ports['admin']}. Ctrl-C stops everything.""", flush=True)
    while True:
        for name, process in gateway.processes:
            if process.poll() is not None:
                raise Failure(f"{name} ended with {process.returncode}")
        time.sleep(0.2)


# --- The parts -----------------------------------------------------------------------------------------------------


def built():
    """Builds the release binary and returns its path."""
    print("building tollgate: cargo build --release", flush=True)
    try:
        build = subprocess.run(["cargo", "build", "--release", "--bin", "tollgate"], cwd=PROJECT)
    except FileNotFoundError:
        raise Failure("there is no cargo on PATH: install Rust, or name a tollgate binary with --tollgate PATH")
    if build.returncode != 0:
        raise Failure("tollgate does not build: cargo says why above")
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", PROJECT / "target"))
    return (PROJECT / target / "release" / "tollgate").resolve()


def envoy():
    """The path of an Envoy: from PATH, or installed into .venv of the project."""
    found = subprocess.run([PROJECT / "scripts" / "envoy"], stdout=subprocess.PIPE, text=True)
    if found.returncode != 0:
        raise Failure("there is no Envoy")
    path = found.stdout.strip()
    if shutil.which(path) is None:
        raise Failure(f"{path} is no Envoy that can be run: TOLLGATE_ENVOY names it")
    return path


def main():
    parser = argparse.ArgumentParser(description="A real Envoy with tollgate behind it.")
    parser.add_argument("--up", action="store_true", help="leave it running instead of playing the story")
    parser.add_argument("--store", choices=["redis", "postgres"], help="two tollgates that share such a store")
    parser.add_argument("--tollgate", metavar="PATH", help="a tollgate binary, instead of building one")
    options = parser.parse_args()
    for stop in STOPS:
        # Under nohup it must outlive the terminal.
        if stop != signal.SIGHUP or signal.getsignal(stop) != signal.SIG_IGN:
            signal.signal(stop, interrupt)
    try:
        # Before the build, which takes longer.
        found = envoy()
        with Gateway(options.tollgate or built(), found, options.store) as gateway:
            return leave_running(gateway) if options.up else play(gateway)
    except KeyboardInterrupt:
        print("\nstopped")
        return 0 if options.up else 130
    except Failure as failure:
        print(f"demo: {failure}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
