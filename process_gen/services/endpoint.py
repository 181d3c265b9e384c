"""Asks a model behind an OpenAI-compatible endpoint, through the official client; any number of threads may.

A request that fails in transit is sent again after the time that the endpoint names (`Retry-After`). A
question whose answer does not parse is asked again. With `cache`, answers are kept on disk, so that asking
again costs nothing. `ServiceError` ends the run: the endpoint cannot be reached, refuses the key or the
model, or fails one request after the other.

The key is never part of a message, a file or a `repr`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import numpy as np
import openai

from process_gen.common import files
from process_gen.common.images import UNREADABLE, png, rgb
from process_gen.services.options import (
    KEY,
    URL,
    Connection,
    GaveUp,
    Refused,
    ServiceError,
    endpoint_name,
    read_key,
)

T = TypeVar("T")


class Unread(GaveUp):
    """None of the answers to a question parses; `raw` are the replies in order."""


class Endpoint:
    """Sends requests to one model, and keeps the answers where `service.cache` says.

    Attributes:
      service: its options.
      place: what messages call the endpoint.
    """

    def __init__(self, service: Connection):
        """Sends no request yet.

        Raises:
          ServiceError: no model or no key, an option is out of range, or the URL or the key is not valid.
        """
        service.check()
        self.service = service
        base_url = service.base_url or os.environ.get(URL, "")
        self._key = read_key()
        if not self._key and not base_url:
            raise ServiceError(
                f"no key for {service.model}: set {KEY}, or base_url for an endpoint without one"
            )
        self.place = endpoint_name(base_url)
        self._client = openai.OpenAI(
            api_key=self._key or "EMPTY",
            base_url=base_url or None,
            timeout=service.timeout,
            max_retries=service.retries,
        )
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._in_a_row = 0  # requests given up since the last one that was answered
        self._answered: set[str] = set()  # kinds of requests (`_request_kind`) of which one was answered
        self._next = 0.0  # when the next request may begin, in seconds of `time.monotonic`

    # --------------------------------------------------------------------- ask

    def ask(
        self,
        what: str,
        system: str,
        text: str,
        images: Sequence[np.ndarray],
        fields: Mapping[str, Any],
        read: Callable[[str], T | None],
    ) -> tuple[T, dict[str, Any]]:
        """Asks a chat model about a text and images, each [H, W, 3] uint8.

        Args:
          what: names the question in messages.
          system, text, images: of the request.
          fields: other fields of the request, as `temperature`.
          read: parses an answer; None where it cannot. Where it raises ValueError, the model is told why
            before it is asked again.

        Returns:
          What `read` made, and the reply: `answer`, `model`, `system_fingerprint`, `tokens_in`, `tokens_out`.

        Raises:
          Unread: none of `service.tries` answers parses.
          GaveUp: the endpoint gave up on this request (`Refused` if it rejects its content), or is closed.
          ServiceError: it cannot be reached, refuses the key or the model, or gives up on one request after
            the other.
        """
        kept = self._place_of(self.digest(system, fields, text, *self._names(images)))
        reply = _read(kept, files.read_json)
        whole = isinstance(reply, dict) and isinstance(reply.get("answer"), str)  # else it is damaged
        if whole and (found := _understood(read, reply["answer"])[0]) is not None:
            return found, reply
        urls = ["data:image/png;base64," + base64.b64encode(png(image)).decode() for image in images]
        shown = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        messages = [
            {"role": "system", "content": system},
            {"role": "user", "content": [{"type": "text", "text": text}, *shown]},
        ]
        replies = []
        for _ in range(self.service.tries):
            replies.append(reply := self._chat(what, messages, fields))
            found, complaint = _understood(read, reply["answer"])
            if found is not None:
                self._keep(kept, json.dumps(reply).encode() + b"\n")
                return found, reply
            if complaint:
                told = {"role": "assistant", "content": reply["answer"]}
                messages = [*messages[:2], told, {"role": "user", "content": complaint}]
        message = f"{what}: none of {len(replies)} answers parses, the last: {reply['answer'][:80]!r}"
        raise Unread(message, replies)

    def draw(
        self,
        what: str,
        prompt: str,
        image: np.ndarray | None,
        fields: Mapping[str, Any],
        attempt: int = 0,
        salt: str = "",
    ) -> np.ndarray:
        """Asks an image model to draw an image, or to edit one.

        Args:
          what: names the request in messages.
          prompt: what to draw, or what to change.
          image: the image to edit, [H, W, 3] uint8; None to draw a new one.
          fields: other fields of the request.
          attempt: part of the cache key: another number asks for another image of the same request.
          salt: part of the cache key: equal requests with different salts get images of their own.

        Returns:
          [H, W, 3] uint8, of the size that the model returns.

        Raises:
          GaveUp, ServiceError: see `ask`.
        """
        names = self._names([] if image is None else [image])
        kept = self._place_of(self.digest("image", fields, prompt, *names, attempt, salt), ".png")
        if (found := _read(kept, rgb)) is not None:
            return found
        asked = {"model": self.service.model, "prompt": prompt, "extra_body": dict(fields)}
        with self._request(what, "images", self._request_kind("images", fields, image is not None)):
            if image is None:
                reply = self._client.images.generate(**asked)
            else:
                reply = self._client.images.edit(image=("image.png", png(image), "image/png"), **asked)
            found = rgb(io.BytesIO(base64.b64decode(reply.data[0].b64_json, validate=True)))
        if kept is not None:  # or the image would be encoded for nothing
            self._keep(kept, png(found))
        return found

    def close(self) -> None:
        """Starts no more requests; those under way go on, with their retries, and their answers are kept."""
        self._closed.set()

    def digest(self, system: str, fields: Mapping[str, Any], *texts: Any) -> str:
        """Hash of the parts of a request; it does not depend on which endpoint serves the model."""
        return hashlib.sha256(json.dumps([system, dict(fields), texts], sort_keys=True).encode()).hexdigest()

    # ----------------------------------------------------------------- request

    def _chat(self, what: str, messages: list[Any], fields: Mapping[str, Any]) -> dict[str, Any]:
        """Sends one request and returns the reply, whether or not its answer parses."""
        like = self._request_kind("chat", fields, len(messages[1]["content"]) > 1)
        with self._request(what, "chat completions", like):
            # All but the messages goes in as extra fields: servers know more of them than the client.
            reply = self._client.chat.completions.create(
                model=self.service.model, messages=messages, extra_body=dict(fields)
            )
            # The client does not validate what comes with status 200: these lines may raise.
            message = reply.choices[0].message
            answer = message.content or getattr(message, "refusal", None) or ""
            return {
                "answer": self._without_key(str(answer)),
                "model": reply.model,
                "system_fingerprint": getattr(reply, "system_fingerprint", None),
                "tokens_in": getattr(reply.usage, "prompt_tokens", None) or 0,
                "tokens_out": getattr(reply.usage, "completion_tokens", None) or 0,
            }

    @contextlib.contextmanager
    def _request(self, what: str, kind: str, like: str) -> Iterator[None]:
        """Waits for the rate limit, and turns errors of the request in the block into errors of ours.

        `like` is equal for requests that differ in their texts and images alone. If one is refused though
        others like it were answered, its content is the reason (`Refused`); else the options may be.
        """
        self._wait()
        if self._closed.is_set():
            raise GaveUp(f"{what}: not sent, the run is stopping")
        try:
            yield
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            message = f"{self.place} refuses the key in {KEY} (HTTP {error.status_code})"
            raise ServiceError(message) from None  # the server's words may hold the key
        except openai.NotFoundError as error:
            raise ServiceError(
                f"{self.place} has no model {self.service.model}, or no {kind}: {self._said(error)}"
            ) from None
        except openai.APITimeoutError:
            self._gave_up(what, f"no answer within {self.service.timeout:g} s")
        except openai.APIStatusError as error:
            why = f"HTTP {error.status_code}: {self._said(error)}"
            if error.status_code in (400, 422) and self._answers(like):
                raise Refused(f"{what}: {self.place} refuses it: {why}", {"error": why}) from None
            self._gave_up(what, why)
        except openai.APIConnectionError as error:
            raise ServiceError(f"cannot reach {self.place}: {self._said(error.__cause__ or error)}") from None
        except (openai.APIError, AttributeError, LookupError, TypeError, ValueError, *UNREADABLE):
            one = "chat completion" if kind.startswith("chat") else "image as base64"
            self._gave_up(what, f"the reply is no {one}")
        self._note_answer(like)

    def _wait(self) -> None:
        """Waits so that requests begin at least 60 / `per_minute` seconds apart; `close` ends the wait."""
        if not self.service.per_minute:
            return
        with self._lock:
            now = time.monotonic()
            begin = max(now, self._next)
            self._next = begin + 60 / self.service.per_minute
        self._closed.wait(begin - now)

    def _request_kind(self, kind: str, fields: Mapping[str, Any], images: bool) -> str:
        """Hash that is equal for requests that differ in their texts and images alone."""
        return self.digest(kind, fields, *self._names([]), images)

    def _note_answer(self, like: str) -> None:
        with self._lock:
            self._in_a_row, new = 0, like not in self._answered
            self._answered.add(like)
        if new:
            self._keep(self._place_of(like, ".answered"), b"")

    def _answers(self, like: str) -> bool:
        """Whether a request like it was answered; with `cache`, earlier runs count as well."""
        path = self._place_of(like, ".answered")
        return like in self._answered or (path is not None and path.exists())

    def _gave_up(self, what: str, why: str) -> NoReturn:
        """Raises GaveUp for one request, or ServiceError after max(3, workers) of them in a row."""
        with self._lock:
            self._in_a_row += 1
            enough = self._in_a_row >= max(3, self.service.workers)
        if enough:
            raise ServiceError(f"{self.place} fails one request after the other: {why}")
        raise GaveUp(f"{what}: {self.place} gave up: {why}", {"error": why})

    def _said(self, error: BaseException) -> str:
        """What an error says, in one short line."""
        return self._without_key(" ".join(str(error).split()))[:200] or type(error).__name__

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text

    # -------------------------------------------------------------------- kept

    def _names(self, images: Sequence[np.ndarray]) -> list[str]:
        """Model, revision and hashes of the images: parts of every cache key."""
        pixels = (hashlib.sha256(repr(i.shape).encode() + i.tobytes()).hexdigest() for i in images)
        return [self.service.model, self.service.revision, *pixels]

    def _place_of(self, digest: str, suffix: str = ".json") -> pathlib.Path | None:
        if not self.service.cache:
            return None
        return pathlib.Path(self.service.cache).expanduser() / digest[:2] / f"{digest}{suffix}"

    def _keep(self, path: pathlib.Path | None, content: bytes) -> None:
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.whole(path) as scratch:
                scratch.write_bytes(content)
        except OSError as error:
            raise ServiceError(f"cannot keep answers, cache={path.parent.parent}: {error}") from error


def _understood(read: Callable[[str], T | None], text: str) -> tuple[T | None, str]:
    """What `read` makes of an answer, and what to tell the model if it raised ValueError."""
    try:
        return read(text), ""
    except ValueError as error:
        return None, f"This cannot be used: {error}. Answer again."


def _read(path: pathlib.Path | None, read: Callable[[pathlib.Path], Any]) -> Any:
    """What was kept; None where nothing was, or where it cannot be read."""
    try:
        return None if path is None else read(path)
    except UNREADABLE:
        return None
