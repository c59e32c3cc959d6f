"""An HTTP proxy on loopback that misbehaves on a seeded schedule."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = (
    "drop",  # the connection is reset before the server hears anything
    "502",  # a gateway error, and the server hears nothing
    "502 after",  # a gateway error, though the server has acted
    "reset after",  # the server has acted, and its answer is lost
    "half",  # the connection is reset in the middle of the answer
    "hang",  # the server has acted, and its answer does not come in time
    "late",  # the client is cut off at once; the server acts a moment later
)
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


class FaultProxy:
    """Forwards requests to a server; some of them go wrong.

    Args:
        upstream: the server's URL.
        seed: decides which requests go wrong, and how.
        share: of the requests that go wrong, until ``most`` have.
        hang_s: longer than the client waits.
    """

    def __init__(self, upstream, seed, *, share=0.2, most=8, hang_s=1.8, late_s=0.4):
        parts = urlsplit(upstream)
        self._address = (parts.hostname, parts.port)
        self._rng = random.Random(seed)
        self._lock = threading.Lock()
        self._left = most
        self._share, self._hang_s, self._late_s = share, hang_s, late_s
        self.happened = Counter()
        self._late = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_):
                pass

            def handle_one_request(self):
                try:
                    super().handle_one_request()
                except (ConnectionError, TimeoutError):
                    self.close_connection = True

            def _do(self):
                proxy._serve(self)

            do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _do  # noqa: N815

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass  # clients are killed on purpose

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self):
        self.settle()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def settle(self):
        """Waits for requests that the server was to hear late."""
        for worker in self._late:
            worker.join()
        self._late.clear()

    def _draw(self):
        with self._lock:
            if not self._left or self._rng.random() >= self._share:
                return None
            self._left -= 1
            fault = self._rng.choice(FAULTS)
            self.happened[fault] += 1
            return fault

    def _forward(self, method, path, headers, body):
        upstream = http.client.HTTPConnection(*self._address, timeout=60)
        try:
            upstream.request(method, path, body=body, headers=headers)
            answer = upstream.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            upstream.close()

    def _serve(self, handler):
        body = handler.rfile.read(int(handler.headers.get("content-length") or 0)) or None
        headers = {k: v for k, v in handler.headers.items() if k.lower() not in HOP_BY_HOP}
        request = (handler.command, handler.path, headers, body)
        fault = self._draw()
        if fault == "drop":
            return self._reset(handler)
        if fault == "502":
            return self._bad_gateway(handler)
        if fault == "late":
            worker = threading.Timer(self._late_s, self._quietly, request)
            worker.start()
            self._late.append(worker)
            return self._reset(handler)
        try:
            status, found, answer = self._forward(*request)
        except (OSError, http.client.HTTPException):  # the server is down
            return self._bad_gateway(handler)
        if fault == "502 after":
            return self._bad_gateway(handler)
        if fault == "reset after":
            return self._reset(handler)
        if fault == "hang":
            time.sleep(self._hang_s)
            return self._reset(handler)
        handler.send_response_only(status)
        for name, value in found:
            if name.lower() not in HOP_BY_HOP:
                handler.send_header(name, value)
        handler.send_header("content-length", str(len(answer)))
        handler.end_headers()
        if fault == "half":
            handler.wfile.write(answer[: len(answer) // 2])
            return self._reset(handler)
        handler.wfile.write(answer)
        return None

    def _quietly(self, *request):
        with suppress(OSError, http.client.HTTPException):
            self._forward(*request)

    @staticmethod
    def _bad_gateway(handler):
        page = b"<html>bad gateway</html>"
        handler.send_response_only(502)
        handler.send_header("content-type", "text/html")
        handler.send_header("content-length", str(len(page)))
        handler.end_headers()
        handler.wfile.write(page)

    @staticmethod
    def _reset(handler):
        """An abrupt end, not an orderly one."""
        handler.close_connection = True
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()
