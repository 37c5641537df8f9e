#!/usr/bin/env python3
"""A small upstream for the gateway: it has a login, a slow page, and a page that reports tokens.

    GET  /slow?seconds=3       answers after three seconds
    POST /login                200 where the header x-password is "secret", else 401
    GET  /v1/chat?tokens=400   a JSON body that says it used 400 tokens
    anything else              200 and the path
"""

import argparse
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Upstream(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are separate writes: with Nagle's algorithm the body would wait 40 ms for the head's acknowledgement.
    disable_nagle_algorithm = True

    def answer(self):
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        self.rfile.read(int(self.headers.get("content-length", 0)))
        if url.path == "/login":
            if self.headers.get("x-password") == "secret":
                return self.send(200, "welcome\n")
            return self.send(401, "wrong password\n")
        if url.path == "/slow":
            self.server.stopping.wait(float(query.get("seconds", ["3"])[0]))
            return self.send(200, "done\n")
        if url.path == "/v1/chat":
            tokens = int(query.get("tokens", ["100"])[0])
            body = json.dumps({"answer": "Certainly.", "usage": {"total_tokens": tokens}})
            return self.send(200, body + "\n", "application/json")
        return self.send(200, f"{self.command} {self.path}\n")

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = answer

    def send(self, status, body, content_type="text/plain"):
        body = body.encode()
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address):
        super().__init__(address, Upstream)
        self.stopping = threading.Event()


def main():
    parser = argparse.ArgumentParser(description="A small upstream for the gateway.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9000)
    options = parser.parse_args()
    server = Server((options.host, options.port))
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.stopping.set()


if __name__ == "__main__":
    main()
