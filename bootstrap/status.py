"""The seed's status page: one static file and a JSON document, over HTTP on loopback.

The standard library's server runs in threads and only ever copies what the seed left for it once a second: a browser
that hangs costs a thread (of `MAX_AT_ONCE`) and nothing of the seed. Only requests that name this machine as their host
are answered, so that no web page elsewhere can read it through a name that points here.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any, cast

import trio

from coppermesh.p2p.errors import Unreachable

REFRESH_SECONDS = 1.0
REQUEST_SECONDS = 5.0
MAX_AT_ONCE = 16
_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:[0-9]{1,5})?")


class _Pages:
    """What is served: replaced as a whole, so that threads may read it at any time."""

    def __init__(self) -> None:
        self.html = files("coppermesh.bootstrap").joinpath("status.html").read_bytes()
        self.json = b"{}"
        text = self.html.decode()
        self.policy = "; ".join(
            (
                "default-src 'none'",
                "connect-src 'self'",
                f"script-src {_hashed(text, 'script')}",
                f"style-src {_hashed(text, 'style')}",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
            )
        )

    def find(self, path: str) -> tuple[str, bytes] | None:
        if path == "/":
            return "text/html; charset=utf-8", self.html
        return ("application/json", self.json) if path == "/status.json" else None


def _hashed(html: str, tag: str) -> str:
    """The page's own script or style as a content security policy names it."""
    found = re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    assert found is not None
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 16

    def __init__(self, port: int, pages: _Pages) -> None:
        self.pages = pages
        self.room = threading.Semaphore(MAX_AT_ONCE)
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up half-way is its own business."""


class _Handler(BaseHTTPRequestHandler):
    timeout = REQUEST_SECONDS
    protocol_version = "HTTP/1.0"
    server_version = "coppermesh"
    sys_version = ""

    @property
    def _pages(self) -> _Pages:
        return cast("_Server", self.server).pages

    def do_GET(self) -> None:
        if _HOST.fullmatch(self.headers.get("Host", "")) is None:
            self.send_error(403, "ask for this page by 127.0.0.1 or localhost")
            return
        found = self._pages.find(self.path.partition("?")[0])
        if found is None:
            self.send_error(404)
            return
        kind, body = found
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", self._pages.policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
        """Requests are not logged."""


@asynccontextmanager
async def serve_status(port: int, facts: Callable[[], dict[str, Any]]) -> AsyncIterator[int]:
    """Serve the page on 127.0.0.1 for the length of the block; gives the port. `facts` is asked once a second.

    Raises Unreachable where the port is taken.
    """
    pages = _Pages()
    try:
        server = _Server(port, pages)
    except OSError as error:
        raise Unreachable(
            f"the status page cannot listen on 127.0.0.1 port {port}: {error.strerror}; set `status_port`"
        ) from error
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_refresh, pages, facts)
            yield int(server.server_address[1])
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(server.shutdown)
            server.server_close()


async def _refresh(pages: _Pages, facts: Callable[[], dict[str, Any]]) -> None:
    while True:
        pages.json = json.dumps(facts()).encode()
        await trio.sleep(REFRESH_SECONDS)
