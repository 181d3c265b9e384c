"""Google Cloud Storage in memory: the part of its JSON API that gcsfs and TensorStore use, on this machine.

The fixture `gcs` (tests/conftest.py) is one that gs:// leads to.

Buckets exist as soon as they are named. Conditional writes and generations work as in the real one.
"""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers and content."""

_BUCKET = re.compile(r"/storage/v1/b/[^/]+")
_LIST = re.compile(r"/storage/v1/b/([^/]+)/o")
_UPLOAD = re.compile(r"(?:/resumable)?/upload/storage/v1/b/([^/]+)/o")
_OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
_MOVE = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/moveTo/o/([^/]+)")
_BATCH = "/batch/storage/v1"


class FakeGcs:
    """Serves while it is entered.

    Attributes:
      objects: (bucket, name) -> (generation, content).
      environment: what makes gcsfs and TensorStore ask this server.
      refused: (method, regular expression of a path) of requests that get a 403.
      refused_content: uploads that end in it are refused, too.
    """

    def __init__(self):
        self.objects: dict[tuple[str, str], tuple[int, bytes]] = {}
        self.refused: list[tuple[str, str]] = []
        self.refused_content: bytes | None = None
        self._uploads: list[tuple[str, str, Mapping[str, str], bytearray]] = []
        self._lock, self._written = threading.RLock(), 0
        handler = type("Handler", (_Handler,), {"gcs": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *about: None  # a client has closed its connection
        self._url = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {
            "STORAGE_EMULATOR_HOST": self._url,
            "TENSORSTORE_GCS_HTTP_URL": self._url,
        }

    def __enter__(self) -> FakeGcs:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def names(self, bucket: str = "bucket") -> list[str]:
        return sorted(name for where, name in self.objects if where == bucket)

    def read(self, name: str, bucket: str = "bucket") -> bytes:
        return self.objects[bucket, name][1]

    def write(self, name: str, content: bytes, bucket: str = "bucket") -> None:
        self._put(bucket, name, content, {})

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        parts = urlsplit(target)
        path, query = parts.path, dict(parse_qsl(parts.query, keep_blank_values=True))
        if any(method == one and re.search(pattern, target) for one, pattern in self.refused):
            return _error(403)
        with self._lock:
            if path == _BATCH:
                return self._batch(headers, body)
            if match := _MOVE.fullmatch(path):
                bucket, old, new = map(unquote, match.groups())
                if (bucket, old) not in self.objects:
                    return _error(404)
                return _json(self._put(bucket, new, self.objects.pop((bucket, old))[1], query))
            if match := _OBJECT.fullmatch(path):
                return self._object(method, path, tuple(map(unquote, match.groups())), query, headers)
            if match := _LIST.fullmatch(path):
                return _json(self._listing(match[1], query))
            if match := _UPLOAD.fullmatch(path):
                return self._upload(match[1], query, headers, body)
            return _json({"name": path.split("/")[-1]}) if _BUCKET.fullmatch(path) else _error(404)

    def _put(self, bucket: str, name: str, content: bytes, query: Mapping[str, str]) -> dict[str, Any] | None:
        """Writes an object and describes it; None where it has another generation than asked for."""
        wanted = query.get("ifGenerationMatch")
        if wanted is not None and int(wanted) != self.objects.get((bucket, name), (0,))[0]:
            return None
        self._written += 1
        self.objects[bucket, name] = (self._written, content)
        return self._describe(bucket, name)

    def _describe(self, bucket: str, name: str) -> dict[str, Any]:
        generation, content = self.objects[bucket, name]
        times = dict.fromkeys(("timeCreated", "updated"), "2026-01-01T00:00:00Z")
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{generation}",
            "bucket": bucket,
            "name": name,
            "generation": str(generation),
            "metageneration": "1",
            "size": str(len(content)),
            "contentType": "application/octet-stream",
            **times,
        }

    def _object(self, method: str, path: str, key: Any, query: Mapping[str, str], headers: Any) -> Answer:
        if key not in self.objects:
            return _error(404)
        generation, content = self.objects[key]
        if query.get("ifGenerationMatch", str(generation)) != str(generation):
            return _error(412)
        if method == "DELETE":
            del self.objects[key]
            return 204, {}, b""
        if query.get("alt") != "media" and not path.startswith("/download"):
            return _json(self._describe(*key))
        if query.get("ifGenerationNotMatch") == str(generation):
            return 304, {}, b""
        marks = {"x-goog-generation": str(generation)}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("Range") or "")
        if not asked:
            return 200, marks, content
        start, stop = int(asked[1]), min(int(asked[2] or len(content)) + 1, len(content))
        if start >= len(content):
            return _error(416)
        marks["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return 206, marks, content[start:stop]

    def _listing(self, bucket: str, query: Mapping[str, str]) -> dict[str, Any]:
        prefix, delimiter, items, prefixes = query.get("prefix", ""), query.get("delimiter"), [], set()
        for name in self.names(bucket):
            below = name.removeprefix(prefix)
            if not name.startswith(prefix) or not query.get("startOffset", "") <= name:
                continue
            if name >= query.get("endOffset", "\uffff"):
                continue
            if delimiter and delimiter in below:
                prefixes.add(prefix + below.split(delimiter)[0] + delimiter)
            else:
                items.append(self._describe(bucket, name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}

    def _upload(self, bucket: str, query: Mapping[str, str], headers: Any, body: bytes) -> Answer:
        if self.refused_content is not None and body.endswith(self.refused_content):
            return _error(403)
        if "upload_id" in query:  # a part of a resumable one
            *place, given, content = self._uploads[int(query["upload_id"])]
            content += body
            total = (headers.get("Content-Range") or "*").split("/")[-1]
            if total == "*" or len(content) < int(total):
                return 308, {"Range": f"bytes=0-{len(content) - 1}"} if content else {}, b""
            found = self._put(*place, bytes(content), given)
        elif query["uploadType"] == "resumable":
            self._uploads.append((bucket, query.get("name") or json.loads(body)["name"], query, bytearray()))
            here = f"{self._url}/upload/storage/v1/b/{bucket}/o?upload_id={len(self._uploads) - 1}"
            return 200, {"Location": here}, b""
        elif query["uploadType"] == "multipart":
            first, second = _parts(headers, body)
            found = self._put(bucket, json.loads(first)["name"], second, query)
        else:
            found = self._put(bucket, query["name"], body, query)
        return _json(found) if found else _error(412)

    def _batch(self, headers: Any, body: bytes) -> Answer:
        text = b""
        for number, part in enumerate(_parts(headers, body), 1):
            method, target, _ = part.split(b"\n")[0].decode().split()
            status, _, content = self.answer(method, target, {}, b"")
            text += (
                (
                    f"--answer\r\nContent-Type: application/http\r\nContent-ID: <response-{number}>\r\n\r\n"
                    f"HTTP/1.1 {status} _\r\nContent-Length: {len(content)}\r\n\r\n"
                ).encode()
                + content
                + b"\r\n"
            )
        return 200, {"Content-Type": "multipart/mixed; boundary=answer"}, text + b"--answer--\r\n"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version, wbufsize = "HTTP/1.1", 1 << 16  # an answer is one packet
    gcs: FakeGcs

    def log_message(self, *args: object) -> None:
        del args

    def _handle(self) -> None:
        body = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, headers, content = self.gcs.answer(self.command, self.path, self.headers, body)
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _handle


def _parts(headers: Any, body: bytes) -> list[bytes]:
    """The contents of the parts of a multipart body."""
    boundary = re.search(r"boundary=\"?([^\";]+)", headers["Content-Type"])[1].encode()
    found = []
    for part in body.split(b"--" + boundary)[1:-1]:
        end = b"\r\n" if part.startswith(b"\r\n") else b"\n"
        _, content = part.removeprefix(end).split(2 * end, 1)
        found.append(content.removesuffix(end))
    return found


def _json(value: Any) -> Answer:
    return 200, {"Content-Type": "application/json; charset=UTF-8"}, json.dumps(value).encode()


def _error(status: int) -> Answer:
    error = {"code": status, "message": f"error {status}", "errors": [{"reason": "fake"}]}
    return status, {"Content-Type": "application/json"}, json.dumps({"error": error}).encode()
