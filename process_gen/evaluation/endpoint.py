"""A chat model behind an OpenAI-compatible endpoint: OpenAI's own, vLLM, any that has chat completions.

A request has a system message and one user message: a text, and an image as PNG if
there is one. What has an answer that does not parse is asked again; then, or where
the endpoint gives up on a request, it is left without one. Where nothing comes back
any more, or the key is refused, the run ends.

The key is never part of a message, a file or a `repr`.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import math
import os
import pathlib
import threading
import urllib.parse
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import numpy as np
import openai
from PIL import Image

from process_gen.common import files
from process_gen.evaluation.chat_options import ChatOptions
from process_gen.evaluation.tasks.base import TaskError, Unjudged
from process_gen.evaluation.tasks.reading import read_text

KEY = "OPENAI_API_KEY"
URL = "OPENAI_BASE_URL"

_OURS = ("model", "messages", "stream", "n")  # fields of a request that `extra` leaves alone
_LETTERS_PER_TOKEN = 4


Answer = TypeVar("Answer")


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What work will take, roughly, if every answer parses and none is cached.

    Attributes:
      requests: how many.
      tokens_in, tokens_out: of all of them.
      cost: in the currency of the prices; None without prices.
    """

    requests: int
    tokens_in: int
    tokens_out: int
    cost: float | None

    def __str__(self) -> str:
        price = "no prices given" if self.cost is None else f"about {self.cost:,.2f} at the prices given"
        amounts = f"{self.tokens_in:,} tokens in and {self.tokens_out:,} out"
        return f"{self.requests:,} requests, about {amounts}; {price}"


class ChatModel:
    """Answers questions; any number of threads may ask.

    Attributes:
      name: of the model.
      workers: requests side by side.
      spent: `requests` whose reply came, `cached` answers, `unparsed` ones,
        `tokens_in` and `tokens_out`, so far.
    """

    def __init__(self, options: ChatOptions, system: str, max_tokens: int):
        """Asks nothing yet.

        Args:
          options: of the user.
          system: the system message.
          max_tokens: of an answer, unless the user says otherwise.

        Raises:
          TaskError: no model or no key, or an option is out of range.
        """
        _check(options)
        self.name, self.workers = options.model, options.workers
        self.spent: Counter[str] = Counter()
        self._options, self._system = options, system
        extra = _extra(options.extra)
        asked = {
            "temperature": options.temperature,
            "max_tokens": options.max_tokens or max_tokens,
            **extra,
        }
        self._sampling = {name: value for name, value in asked.items() if value is not None}
        base_url = options.base_url or os.environ.get(URL, "")
        self._key = _read_key()
        if not self._key and not base_url:
            raise TaskError(f"no key for {options.model}: set {KEY}, or base_url for an endpoint without one")
        self._endpoint = _endpoint(base_url)
        self._client = openai.OpenAI(
            api_key=self._key or "EMPTY",
            base_url=base_url or None,
            timeout=options.timeout,
            max_retries=options.retries,
        )
        self._lock = threading.Lock()
        self._in_a_row = 0  # requests that came to nothing since the last that did not

    def revision(self, *texts: str) -> str:
        """Of its weights, as the user gave it, and a hash of `texts` and all else that is always asked."""
        return f"{self._options.revision or 'as served'}, asked {self.hash(*texts)[:8]}"

    def ask(
        self, what: str, text: str, image: np.ndarray | None, read: Callable[[str], Answer | None]
    ) -> tuple[Answer, Mapping[str, Any]]:
        """What it answers, and the reply that says so.

        Args:
          what: names the question in messages.
          text: the question.
          image: [H, W, 3] uint8, None where there is none.
          read: what a text says; None where it says nothing. Where it raises ValueError, the model is
            told why before it tries again.

        Raises:
          Unjudged: no answer parsed, or the endpoint gave up on this question.
          TaskError: the endpoint cannot be reached, refuses the key or the model, or gives up on all.
        """
        image = None if image is None else np.ascontiguousarray(image)
        kept = self._kept(text, image)
        reply = _read_kept(kept)
        if reply is not None and (found := _understood(read, reply["answer"])[0]) is not None:
            self._count(cached=1)
            return found, reply
        replies, content = [], [{"type": "text", "text": text}]
        if image is not None:
            content.append({"type": "image_url", "image_url": {"url": _data_url(image)}})
        messages = [{"role": "system", "content": self._system}, {"role": "user", "content": content}]
        for _ in range(self._options.tries):
            replies.append(reply := self._reply(what, messages))
            found, complaint = _understood(read, reply["answer"])
            if found is not None:
                _keep(kept, reply)
                return found, reply
            self._count(unparsed=1)
            if complaint:
                told = (
                    {"role": "assistant", "content": reply["answer"]},
                    {"role": "user", "content": complaint},
                )
                messages = [*messages[:2], *told]
        message = f"{what}: none of {len(replies)} answers parses, the last: {reply['answer'][:80]!r}"
        raise Unjudged(message, replies)

    def estimate(
        self, letters: int, requests: int, pictures: int, answer: int, size: tuple[int, int]
    ) -> Estimate:
        """What so many requests will take.

        Args:
          letters: of all texts but the system message.
          requests, pictures: how many there are.
          answer: tokens of one answer.
          size: height and width of a picture.
        """
        picture = self._options.image_tokens or _image_tokens(*size)
        letters += requests * len(self._system)
        tokens_in = math.ceil(letters / _LETTERS_PER_TOKEN) + pictures * picture
        tokens_out = requests * answer
        prices = self._options.price_in, self._options.price_out
        cost = (tokens_in * prices[0] + tokens_out * prices[1]) / 1e6 if any(prices) else None
        return Estimate(requests, tokens_in, tokens_out, cost)

    def announce(self, estimate: Estimate, limit: str = "") -> Estimate:
        """Prints the estimate as one line, `limit` before it, and returns it."""
        print(f"{self.name} at {self._endpoint}: {limit}{estimate}", flush=True)
        return estimate

    def _reply(self, what: str, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One reply, whatever it says."""
        try:
            # All but the messages goes in as extra fields: servers know more of them than the client.
            reply = self._client.chat.completions.create(
                model=self.name,
                messages=messages,
                extra_body=self._sampling,
            )
            # The client hands on whatever came with status 200.
            message = reply.choices[0].message
            answer = message.content or getattr(message, "refusal", None) or ""
            usage = {
                "tokens_in": getattr(reply.usage, "prompt_tokens", None) or 0,
                "tokens_out": getattr(reply.usage, "completion_tokens", None) or 0,
            }
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            message = f"{self._endpoint} refuses the key in {KEY} (HTTP {error.status_code})"
            raise TaskError(message) from None  # the server's words may hold the key
        except openai.NotFoundError as error:
            raise TaskError(
                f"{self._endpoint} has no model {self.name}, or no chat completions: {self._said(error)}"
            ) from None
        except openai.APITimeoutError:
            self._gave_up(what, f"no answer within {self._options.timeout:g} s")
        except openai.APIStatusError as error:
            self._gave_up(what, f"HTTP {error.status_code}: {self._said(error)}")
        except openai.APIConnectionError as error:
            raise TaskError(
                f"cannot reach {self._endpoint}: {self._said(error.__cause__ or error)}"
            ) from None
        except (openai.APIError, AttributeError, LookupError, TypeError, ValueError):
            self._gave_up(what, "the reply is no chat completion")
        self._count(requests=1, **usage)
        told = {"model": reply.model, "system_fingerprint": getattr(reply, "system_fingerprint", None)}
        return {"answer": self._without_key(str(answer)), **told, **usage}

    def _gave_up(self, what: str, why: str) -> NoReturn:
        """Leaves it without an answer, or ends the run where that happens to one after the other."""
        with self._lock:
            self._in_a_row += 1
            enough = self._in_a_row >= max(3, self.workers)
        if enough:
            raise TaskError(f"{self._endpoint} gives up on one image after the other: {why}")
        raise Unjudged(f"{what}: {self._endpoint} gave up: {why}", {"error": why})

    def _count(self, requests: int = 0, **amounts: int) -> None:
        with self._lock:
            if requests:
                self._in_a_row = 0
            self.spent.update(requests=requests, **amounts)

    def _kept(self, text: str, image: np.ndarray | None) -> pathlib.Path | None:
        """Where the answer is kept; the same for every endpoint that serves the model."""
        if not self._options.cache:
            return None
        shown = b"" if image is None else repr(image.shape).encode() + image.tobytes()
        key = self.hash(text, self.name, self._options.revision, hashlib.sha256(shown).hexdigest())
        return pathlib.Path(self._options.cache).expanduser() / key[:2] / f"{key}.json"

    def hash(self, *texts: str) -> str:
        """Of texts and of everything that is asked with them."""
        asked = json.dumps([self._system, self._sampling, texts], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()

    def _said(self, error: BaseException) -> str:
        """What an error says, in one short line."""
        return self._without_key(" ".join(str(error).split()))[:200] or type(error).__name__

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _understood(read: Callable[[str], Answer | None], text: str) -> tuple[Answer | None, str]:
    """What an answer says, or what is wrong with it."""
    try:
        return read(text), ""
    except ValueError as error:
        return None, f"This cannot be used: {error}. Answer again."


def _check(options: ChatOptions) -> None:
    if not options.model:
        raise TaskError(f"{options.name} needs model=NAME: as its endpoint calls it")
    for name, least in (("workers", 1), ("tries", 1), ("retries", 0), ("max_tokens", 0), ("image_tokens", 0)):
        if getattr(options, name) < least:
            raise TaskError(f"{options.name}.{name} must be at least {least}, got {getattr(options, name)}")
    for name in ("temperature", "price_in", "price_out"):
        if not 0 <= getattr(options, name) < math.inf:
            raise TaskError(f"{options.name}.{name} must not be negative, got {getattr(options, name)}")
    if not 0 < options.timeout < math.inf:
        raise TaskError(f"{options.name}.timeout must be above 0 seconds, got {options.timeout}")


def _read_key() -> str:
    """The key, without the line end that comes along when it is read from a file."""
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):  # no header can hold it, and errors would show it
        raise TaskError(f"{KEY} holds a letter that no key has: a line break, or none of ASCII")
    return key


def _endpoint(base_url: str) -> str:
    """What messages call an endpoint."""
    if set("@?#") & set(base_url):  # first, since the next error shows it
        raise TaskError(f"base_url holds a user, a password or a query; a key goes into {KEY}")
    try:
        parts = urllib.parse.urlsplit(base_url or "https://api.openai.com/v1")
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port)
    except ValueError:
        valid = False
    if not valid:
        raise TaskError(f"base_url must be a URL as http://localhost:8000/v1, got {base_url!r}")
    return parts.geturl()


def _extra(text: str) -> Mapping[str, Any]:
    """The further fields of a request."""
    if not text:
        return {}
    try:
        extra = files.from_json(read_text(text) if text.endswith(".json") else text)
    except ValueError as error:
        raise TaskError(f"extra must be a JSON object or a .json file: {error}") from error
    if not isinstance(extra, dict):
        raise TaskError(f"extra must be a JSON object, got {type(extra).__name__}")
    if ours := sorted(set(extra) & set(_OURS)):
        raise TaskError(f"extra must leave {', '.join(ours)} alone")
    return extra


def _data_url(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _image_tokens(height: int, width: int) -> int:
    """As OpenAI counts: fits 2048, shorter side at most 768, 170 for each tile of 512 and 85 beside."""
    scale = min(1, 2048 / max(height, width), 768 / min(height, width))
    return 85 + 170 * math.ceil(height * scale / 512) * math.ceil(width * scale / 512)


def _read_kept(path: pathlib.Path | None) -> dict[str, Any] | None:
    """A kept reply; None where there is none, or none that can be read."""
    try:
        reply = None if path is None else files.read_json(path)
    except (OSError, ValueError):
        return None
    return reply if isinstance(reply, dict) and isinstance(reply.get("answer"), str) else None


def _keep(path: pathlib.Path | None, reply: Mapping[str, Any]) -> None:
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(path, reply)
    except OSError as error:
        raise TaskError(f"cannot keep answers, cache={path.parent.parent}: {error}") from error
