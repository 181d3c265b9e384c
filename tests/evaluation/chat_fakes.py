"""A chat endpoint on this machine that answers as it is told."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

Answer = str | tuple[int, dict[str, str], Any] | float
"""What the model says; or status, headers and body; or seconds of silence."""


class Endpoint:
    """Attributes: `url` for clients, and the `requests` that came: JSON bodies with their `authorization`."""

    def __init__(self, answer: Callable[[int, dict[str, Any]], Answer]):
        self.requests: list[dict[str, Any]] = []
        self.answer, self.url, self.lock = answer, "", threading.Lock()

    def reply(self, body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        with self.lock:
            number = len(self.requests)
            self.requests.append(body)
        answer = self.answer(number, body)
        if isinstance(answer, float):
            time.sleep(answer)
            answer = "too late"
        if isinstance(answer, tuple):
            return answer
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": answer}}
        usage = {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105}
        told = {"id": "1", "object": "chat.completion", "created": 0, "model": f"{body['model']}-served"}
        return 200, {}, {**told, "choices": [choice], "usage": usage}


@contextlib.contextmanager
def endpoint(answer: Callable[[int, dict[str, Any]], Answer]) -> Iterator[Endpoint]:
    """Serves chat completions; `answer` gets the request's number from 0 and its body."""
    served = Endpoint(answer)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body["path"], body["authorization"] = self.path, self.headers["Authorization"]
            status, headers, reply = served.reply(body)
            data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
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
    served.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
