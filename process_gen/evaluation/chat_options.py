"""What a user says of a chat model: where it is, how it is asked, what it costs."""

from __future__ import annotations

import dataclasses
from typing import ClassVar


@dataclasses.dataclass(frozen=True)
class ChatOptions:
    """Options of a chat model behind an OpenAI-compatible endpoint.

    The key comes from the environment variable OPENAI_API_KEY alone. Endpoints
    other than OpenAI's may do without one.

    Attributes:
      name: whose they are, in messages.
      model: as its endpoint calls it.
      base_url: of the endpoint, as `http://localhost:8000/v1`; by default
        OPENAI_BASE_URL, or OpenAI's own.
      revision: of its weights, where its name does not tell.
      temperature: of its answers.
      max_tokens: of an answer; 0 is what the question has.
      extra: further fields of a request: a JSON object, or a `.json` file that
        holds one; null leaves a field out. Thinking is turned off in vLLM by
        `{"chat_template_kwargs": {"enable_thinking": false}}`, and models that
        know no `max_tokens` want
        `{"max_tokens": null, "max_completion_tokens": 2000}`.
      workers: requests side by side.
      timeout: seconds that one request may take.
      retries: of a request that failed on its way: time-outs, rate limits
        (`Retry-After` is kept to), errors of the server.
      tries: how often it is asked the same until the answer parses.
      cache: folder of answers; none by default.
      price_in, price_out: of a million tokens, for the estimate of costs.
      image_tokens: of one image, for the estimate; 0 reckons as OpenAI does.
    """

    name: ClassVar[str]
    model: str = ""
    base_url: str = ""
    revision: str = ""
    temperature: float = 0.0
    max_tokens: int = 0
    extra: str = ""
    workers: int = 8
    timeout: float = 120.0
    retries: int = 5
    tries: int = 3
    cache: str = ""
    price_in: float = 0.0
    price_out: float = 0.0
    image_tokens: int = 0
