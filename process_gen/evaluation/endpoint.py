"""A chat model that an evaluation asks, behind an OpenAI-compatible endpoint (`process_gen.services`).

What has an answer that does not parse is asked again; then, or where the endpoint gives up on a request, it
is left without one. Where nothing comes back any more, or the key is refused, the run ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from process_gen.evaluation.chat_options import ChatOptions
from process_gen.evaluation.tasks.base import TaskError, Unjudged
from process_gen.evaluation.tasks.reading import read_text
from process_gen.services import estimate
from process_gen.services.endpoint import Endpoint
from process_gen.services.estimate import Estimate
from process_gen.services.options import GaveUp, Service, ServiceError, read_extra, without_none

Answer = TypeVar("Answer")


class ChatModel:
    """Answers questions; any number of threads may ask.

    Attributes:
      name: of the model.
      workers: requests side by side.
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
        self.name, self.workers = options.model, options.workers
        self._options, self._system = options, system
        with _as_task_error():
            service = _service(options)
            service.check()
            _check(options)
            asked = {"temperature": options.temperature, "max_tokens": options.max_tokens or max_tokens}
            self._sampling = without_none({**asked, **read_extra(service.extra)})
            self._endpoint = Endpoint(service)

    @property
    def spent(self) -> Counter[str]:
        """`requests` whose reply came, `cached` answers, `unparsed` ones, `tokens_in` and `tokens_out`."""
        return self._endpoint.spent

    def revision(self, *texts: str) -> str:
        """Of its weights, as the user gave it, and a hash of `texts` and all else that is always asked."""
        digest = self._endpoint.digest(self._system, self._sampling, *texts)
        return f"{self._options.revision or 'as served'}, asked {digest[:8]}"

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
        images = [] if image is None else [image]
        try:
            with _as_task_error():
                return self._endpoint.ask(what, self._system, text, images, self._sampling, read)
        except GaveUp as error:
            raise Unjudged(str(error), error.raw) from None

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
        seen = pictures * (self._options.image_tokens or estimate.image_tokens(*size))
        letters += requests * len(self._system)
        return estimate.estimate(self._endpoint.service, requests, letters, seen, requests * answer)

    def announce(self, estimate: Estimate, limit: str = "") -> Estimate:
        """Prints the estimate as one line, `limit` before it, and returns it."""
        print(f"{self.name} at {self._endpoint.place}: {limit}{estimate}", flush=True)
        return estimate


def _service(options: ChatOptions) -> Service:
    """The endpoint that the options of a task name."""
    shared = {f.name for f in dataclasses.fields(Service)} & {f.name for f in dataclasses.fields(options)}
    told = {name: getattr(options, name) for name in shared - {"name", "extra"}}
    extra = read_text(options.extra) if options.extra.endswith(".json") else options.extra
    return Service(name=options.name, extra=extra, **told)


def _check(options: ChatOptions) -> None:
    """What only evaluations have: the number of tokens, and the temperature."""
    for name in ("max_tokens", "image_tokens"):
        if getattr(options, name) < 0:
            raise TaskError(f"{options.name}.{name} must be at least 0, got {getattr(options, name)}")
    if not 0 <= options.temperature < float("inf"):
        raise TaskError(f"{options.name}.temperature must not be negative, got {options.temperature}")


@contextlib.contextmanager
def _as_task_error() -> Iterator[None]:
    """Turns what ends the use of an endpoint into the error of an evaluation."""
    try:
        yield
    except ServiceError as error:
        raise TaskError(str(error)) from None
