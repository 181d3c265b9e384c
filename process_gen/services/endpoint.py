"""Asks a model behind an OpenAI-compatible endpoint, through the official client; any number of threads may.

A request that fails on its way is tried again, as long as the endpoint says (`Retry-After`). An answer that
cannot be read is asked for again. What was answered is kept on disk, so that asking again costs nothing.
Where nothing comes back any more, or the key is refused, `ServiceError` ends the run.

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
    GaveUp,
    Refused,
    Service,
    ServiceError,
    endpoint_name,
    read_key,
)

T = TypeVar("T")


class Unread(GaveUp):
    """None of the answers to a question can be read; `raw` are the replies, the last one last."""


class Endpoint:
    """A model that is asked.

    Attributes:
      service: its options.
      place: what messages call the endpoint.
    """

    def __init__(self, service: Service):
        """Asks nothing yet.

        Raises:
          ServiceError: no model or no key, or an option is out of range.
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
        self._in_a_row = 0  # requests that came to nothing since the last that did not
        self._answered: set[str] = set()  # kinds of requests
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
        """What a chat model says to a text and images, [H, W, 3] uint8.

        Args:
          what: names the question in messages.
          system, text, images: of the request.
          fields: the others, of those that the endpoint knows.
          read: makes something of an answer; None where it cannot be read. Where it raises ValueError, the
            model is told why before it tries again.

        Returns:
          What `read` made, and the reply: `answer`, `model`, `tokens_in`, `tokens_out`.

        Raises:
          Unread: no answer could be read.
          GaveUp: the endpoint gave up on this one.
          ServiceError: it cannot be reached, refuses the key or the model, or gives up on all.
        """
        images = [np.ascontiguousarray(image) for image in images]
        kept = self._place_of(self.digest(system, fields, text, *self._names(images)))
        reply = _read_kept(kept)
        if reply is not None and (found := _understood(read, reply["answer"])[0]) is not None:
            return found, reply
        shown = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images]
        messages = [
            {"role": "system", "content": system},
            {"role": "user", "content": [{"type": "text", "text": text}, *shown]},
        ]
        replies = []
        for _ in range(self.service.tries):
            replies.append(reply := self._chat(what, messages, fields))
            found, complaint = _understood(read, reply["answer"])
            if found is not None:
                self._keep(kept, lambda path, reply=reply: files.write_json(path, reply))
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
        """The image that an image model makes of a prompt, or of an image that it edits by one.

        Args:
          what: names the request in messages.
          prompt: what to draw, or what to change.
          image: what to change, [H, W, 3] uint8; None to begin anew.
          fields: the others of the request.
          attempt: asks for another image of the same request.
          salt: tells apart requests that are alike and are to have images of their own.

        Returns:
          [H, W, 3] uint8, of the size that comes.

        Raises:
          GaveUp, ServiceError: see `ask`.
        """
        given = [] if image is None else [np.ascontiguousarray(image)]
        digest = self.digest("image", fields, prompt, *self._names(given), attempt, salt)
        kept = self._place_of(digest, ".png")
        if (found := _read_image(kept)) is not None:
            return found
        asked = {"model": self.service.model, "prompt": prompt, "extra_body": dict(fields)}
        with self._request(what, "images", self._like("images", fields, bool(given))):
            if given:
                reply = self._client.images.edit(image=("image.png", png(given[0]), "image/png"), **asked)
            else:
                reply = self._client.images.generate(**asked)
            found = _decoded(reply.data[0].b64_json)
        self._keep(kept, lambda path: _write_png(path, found))
        return found

    def close(self) -> None:
        """Begins no request any more; those under way go on, with their retries, and what comes is kept."""
        self._closed.set()

    def digest(self, system: str, fields: Mapping[str, Any], *texts: Any) -> str:
        """Equal for equal requests, whichever endpoint serves the model."""
        return hashlib.sha256(json.dumps([system, dict(fields), texts], sort_keys=True).encode()).hexdigest()

    # ----------------------------------------------------------------- request

    def _chat(self, what: str, messages: list[Any], fields: Mapping[str, Any]) -> dict[str, Any]:
        """One reply, whatever it says."""
        like = self._like("chat", fields, len(messages[1]["content"]) > 1)
        with self._request(what, "chat completions", like):
            # All but the messages goes in as extra fields: servers know more of them than the client.
            reply = self._client.chat.completions.create(
                model=self.service.model, messages=messages, extra_body=dict(fields)
            )
            # The client hands on whatever came with status 200.
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
        """Waits for its turn, and says what went wrong with the request inside.

        `like` is equal for requests that differ in what they ask alone. One that is refused though others
        like it are answered is refused for what it asks; else the options may be what is refused.
        """
        self._wait()
        if self._closed.is_set():
            raise GaveUp(f"{what}: not asked any more")
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
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            why = f"HTTP {error.status_code}: {self._said(error)}"
            if self._answers(like):
                raise Refused(f"{what}: {self.place} refuses it: {why}", {"error": why}) from None
            self._gave_up(what, why)
        except openai.APIStatusError as error:
            self._gave_up(what, f"HTTP {error.status_code}: {self._said(error)}")
        except openai.APIConnectionError as error:
            raise ServiceError(f"cannot reach {self.place}: {self._said(error.__cause__ or error)}") from None
        except (openai.APIError, AttributeError, LookupError, TypeError, ValueError, *UNREADABLE):
            one = "chat completion" if kind.startswith("chat") else "image as base64"
            self._gave_up(what, f"the reply is no {one}")
        self._note_answer(like)

    def _wait(self) -> None:
        """Keeps to the rate: requests begin at equal distances where they would come faster."""
        if not self.service.per_minute:
            return
        with self._lock:
            now = time.monotonic()
            begin = max(now, self._next)
            self._next = begin + 60 / self.service.per_minute
        self._closed.wait(begin - now)

    def _like(self, kind: str, fields: Mapping[str, Any], images: bool) -> str:
        return self.digest(kind, fields, *self._names([]), images)

    def _note_answer(self, like: str) -> None:
        with self._lock:
            self._in_a_row, new = 0, like not in self._answered
            self._answered.add(like)
        if new:
            self._keep(self._place_of(like, ".answered"), pathlib.Path.touch)

    def _answers(self, like: str) -> bool:
        """Whether requests like it were answered, by an earlier run too."""
        path = self._place_of(like, ".answered")
        return like in self._answered or (path is not None and path.exists())

    def _gave_up(self, what: str, why: str) -> NoReturn:
        """Gives one request up, or ends the run where that happens to one after the other."""
        with self._lock:
            self._in_a_row += 1
            enough = self._in_a_row >= max(3, self.service.workers)
        if enough:
            raise ServiceError(f"{self.place} gives up on one request after the other: {why}")
        raise GaveUp(f"{what}: {self.place} gave up: {why}", {"error": why})

    def _said(self, error: BaseException) -> str:
        """What an error says, in one short line."""
        return self._without_key(" ".join(str(error).split()))[:200] or type(error).__name__

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text

    # -------------------------------------------------------------------- kept

    def _names(self, images: Sequence[np.ndarray]) -> list[str]:
        """Model, revision and pixels, as the place of an answer depends on them."""
        pixels = (hashlib.sha256(repr(i.shape).encode() + i.tobytes()).hexdigest() for i in images)
        return [self.service.model, self.service.revision, *pixels]

    def _place_of(self, digest: str, suffix: str = ".json") -> pathlib.Path | None:
        if not self.service.cache:
            return None
        return pathlib.Path(self.service.cache).expanduser() / digest[:2] / f"{digest}{suffix}"

    def _keep(self, path: pathlib.Path | None, write: Callable[[pathlib.Path], None]) -> None:
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path)
        except OSError as error:
            raise ServiceError(f"cannot keep answers, cache={path.parent.parent}: {error}") from error


def _understood(read: Callable[[str], T | None], text: str) -> tuple[T | None, str]:
    """What an answer says, or what is wrong with it."""
    try:
        return read(text), ""
    except ValueError as error:
        return None, f"This cannot be used: {error}. Answer again."


def _data_url(image: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def _decoded(text: str) -> np.ndarray:
    return rgb(io.BytesIO(base64.b64decode(text, validate=True)))


def _write_png(path: pathlib.Path, image: np.ndarray) -> None:
    with files.whole(path) as scratch:
        scratch.write_bytes(png(image))


def _read_image(path: pathlib.Path | None) -> np.ndarray | None:
    """A kept image; None where there is none, or none that can be read."""
    try:
        return None if path is None else rgb(path)
    except UNREADABLE:
        return None


def _read_kept(path: pathlib.Path | None) -> dict[str, Any] | None:
    """A kept reply; None where there is none, or none that can be read."""
    try:
        reply = None if path is None else files.read_json(path)
    except (OSError, ValueError):
        return None
    return reply if isinstance(reply, dict) and isinstance(reply.get("answer"), str) else None
