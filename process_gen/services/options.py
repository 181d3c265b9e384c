"""Settings of an endpoint with their checks, and the errors of using one."""

from __future__ import annotations

import dataclasses
import math
import os
import urllib.parse
from collections.abc import Mapping
from typing import Any, ClassVar

from process_gen.common import files

KEY = "OPENAI_API_KEY"
URL = "OPENAI_BASE_URL"

_OURS = ("model", "messages", "prompt", "image", "stream", "n")
"""Fields of a request that `extra` must not set."""


class ServiceError(ValueError):
    """An endpoint that cannot be used as asked, or not any longer; the message is fit for a user."""


class GaveUp(Exception):
    """One request failed, others may succeed; the message is fit for a user.

    Attributes:
      raw: what the endpoint said, JSON-like.
    """

    def __init__(self, message: str, raw: Any = None):
        super().__init__(message)
        self.raw = raw


class Refused(GaveUp):
    """The endpoint rejects the content of a request, as a content filter does; a retry would fail too."""


@dataclasses.dataclass(frozen=True)
class Connection:
    """How to reach and ask a model. The key comes from the environment variable OPENAI_API_KEY alone.

    Subclasses have a `name`, which messages call these options: `prompts`, `config.services.chat`.

    Attributes:
      model: as the endpoint calls it.
      base_url: of the endpoint, as `http://localhost:8000/v1`; by default OPENAI_BASE_URL, or OpenAI's own.
      revision: of the weights, where the model's name does not tell.
      extra: further fields of a request: a JSON object or a `.json` file; null leaves a field out.
      workers: requests side by side.
      timeout: seconds that one request may take.
      retries: of a request that failed in transit: time-outs, rate limits (`Retry-After` is kept to),
        errors of the server.
      tries: how often a question is asked until an answer parses.
      cache: folder that keeps answers; none where empty.
      price_in, price_out: of a million tokens, for the estimate of costs.
      per_minute: most requests of a minute; 0 is no limit.
    """

    model: str = ""
    base_url: str = ""
    revision: str = ""
    extra: str = ""
    workers: int = 8
    timeout: float = 120.0
    retries: int = 5
    tries: int = 3
    cache: str = ""
    price_in: float = 0.0
    price_out: float = 0.0
    per_minute: float = 0.0
    _at_least: ClassVar = {"workers": 1, "tries": 1, "retries": 0}
    _not_negative: ClassVar = ("per_minute", "price_in", "price_out")

    def check(self) -> None:
        """Raises ServiceError where an option is out of range."""
        if not self.model:
            raise ServiceError(f"{self.name} needs model=NAME, the name of the model at the endpoint")
        for name, least in self._at_least.items():
            if getattr(self, name) < least:
                raise ServiceError(f"{self.name}.{name} must be at least {least}, got {getattr(self, name)}")
        for name in self._not_negative:
            if not 0 <= getattr(self, name) < math.inf:
                raise ServiceError(f"{self.name}.{name} must not be negative, got {getattr(self, name)}")
        if not 0 < self.timeout < math.inf:
            raise ServiceError(f"{self.name}.timeout must be above 0 seconds, got {self.timeout}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Service(Connection):
    """A connection that carries its `name`, to a model that may draw: `price_image` is of one image."""

    name: str
    price_image: float = 0.0
    _not_negative: ClassVar = (*Connection._not_negative, "price_image")


def read_key() -> str:
    """The key, without the line end that comes along when it is read from a file.

    Raises:
      ServiceError: it has characters that no HTTP header can hold; the client's error would show it.
    """
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ServiceError(f"{KEY} holds a character that is not printable ASCII, such as a line break")
    return key


def endpoint_name(base_url: str) -> str:
    """The name of an endpoint in messages: its URL.

    Raises:
      ServiceError: it is no URL, or has a user, a password or a query, which may be secret.
    """
    if set("@?#") & set(base_url):  # first, since the next error shows it
        raise ServiceError(f"base_url holds a user, a password or a query; a key goes into {KEY}")
    try:
        parts = urllib.parse.urlsplit(base_url or "https://api.openai.com/v1")
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port)
    except ValueError:
        valid = False
    if not valid:
        raise ServiceError(f"base_url must be a URL as http://localhost:8000/v1, got {base_url!r}")
    return parts.geturl()


def read_extra(text: str) -> Mapping[str, Any]:
    """The further fields of a request, from JSON or a `.json` file.

    Raises:
      ServiceError: it is no JSON object, or one with fields that are ours.
    """
    if not text:
        return {}
    try:
        extra = files.read_json(text) if text.endswith(".json") else files.from_json(text)
    except (OSError, ValueError) as error:
        raise ServiceError(f"extra must be a JSON object or a .json file: {error}") from error
    if not isinstance(extra, dict):
        raise ServiceError(f"extra must be a JSON object, got {type(extra).__name__}")
    if ours := sorted(set(extra) & set(_OURS)):
        raise ServiceError(f"extra must leave {', '.join(ours)} alone")
    return extra


def without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Drops fields whose value is None, so that null in `extra` removes a field."""
    return {name: value for name, value in fields.items() if value is not None}
