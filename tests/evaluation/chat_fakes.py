"""Endpoints on this machine that answer as they are told."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

Answer = str | tuple[int, dict[str, str], Any] | float
"""What the model says; or status, headers and body; or seconds of silence."""

Reply = tuple[int, dict[str, str], bytes]
"""Status, headers and body."""


@contextlib.contextmanager
def serving(reply: Callable[[str, Mapping[str, str], bytes], Reply]) -> Iterator[str]:
    """The URL of an endpoint; `reply` gets path, headers and body of a request."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers, data = reply(self.path, self.headers, body)
            with contextlib.suppress(OSError):  # a client that waited long enough is gone
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def completion(text: str, model: str) -> bytes:
    """The body of a reply in which a chat model says a text."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105}
    told = {"id": "1", "object": "chat.completion", "created": 0, "model": model}
    return json.dumps({**told, "choices": [choice], "usage": usage}).encode()


class Endpoint:
    """Attributes: `url` for clients, and the `requests` that came: JSON bodies with their `authorization`."""

    def __init__(self, answer: Callable[[int, dict[str, Any]], Answer]):
        self.requests: list[dict[str, Any]] = []
        self.answer, self.url, self.lock = answer, "", threading.Lock()

    def reply(self, path: str, headers: Mapping[str, str], data: bytes) -> Reply:
        body = json.loads(data) | {"path": path, "authorization": headers["Authorization"]}
        with self.lock:
            number = len(self.requests)
            self.requests.append(body)
        answer = self.answer(number, body)
        if isinstance(answer, float):
            time.sleep(answer)
            answer = "too late"
        if isinstance(answer, tuple):
            status, given, told = answer
            return status, given, told if isinstance(told, bytes) else json.dumps(told).encode()
        return 200, {}, completion(answer, f"{body['model']}-served")


@contextlib.contextmanager
def endpoint(answer: Callable[[int, dict[str, Any]], Answer]) -> Iterator[Endpoint]:
    """Serves chat completions; `answer` gets the request's number from 0 and its body."""
    served = Endpoint(answer)
    with serving(served.reply) as served.url:
        yield served


def set_surroundings(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """An environment with a key, and without proxies or another endpoint."""
    for name in ("OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", key)
