"""A chat model behind an OpenAI-compatible endpoint, and a judge that asks it.

A question is asked up to `tries` times until an answer parses. If none does, or the endpoint gives up on the
request, it raises `Unjudged` and the run goes on. `TaskError` ends the run: the endpoint cannot be reached,
refuses the key or the model, or fails one request after the other.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from process_gen.evaluation.options import read_text
from process_gen.evaluation.tasks.base import Doc, Judgement, TaskError
from process_gen.evaluation.tasks.chat_task import ChatOptions, Question
from process_gen.services import estimate
from process_gen.services.endpoint import Endpoint
from process_gen.services.estimate import Estimate
from process_gen.services.options import Connection, Service, ServiceError, read_extra, without_none

Answer = TypeVar("Answer")

_ANSWER_TOKENS = 40  # of a judge's short answer, for the estimate; tokens of thinking are not counted


class ChatModel:
    """Answers questions; any number of threads may ask.

    Attributes:
      name: of the model.
      workers: requests side by side.
    """

    def __init__(self, options: ChatOptions, system: str, max_tokens: int):
        """Sends no request yet.

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
            asked = {"temperature": options.temperature, "max_tokens": options.max_tokens or max_tokens}
            self._sampling = without_none({**asked, **read_extra(service.extra)})
            self._endpoint = Endpoint(service)

    def revision(self, *texts: str) -> str:
        """The revision that the user gave, and a hash of `texts` and what every request holds."""
        digest = self._endpoint.digest(self._system, self._sampling, *texts)
        return f"{self._options.revision or 'as served'}, asked {digest[:8]}"

    def ask(
        self, what: str, text: str, image: np.ndarray | None, read: Callable[[str], Answer | None]
    ) -> tuple[Answer, Mapping[str, Any]]:
        """Asks a question; returns what `read` makes of the answer, and the reply that holds it.

        Args:
          what: names the question in messages.
          text: the question.
          image: [H, W, 3] uint8, None where there is none.
          read: parses an answer; None where it cannot. Where it raises ValueError, the model is told why
            before it is asked again.

        Raises:
          Unjudged: no answer parsed, or the endpoint gave up on this question.
          TaskError: the endpoint cannot be reached, refuses the key or the model, or gives up on all.
        """
        images = [] if image is None else [image]
        with _as_task_error():
            return self._endpoint.ask(what, self._system, text, images, self._sampling, read)

    def announce(
        self, characters: int, requests: int, answer: int, size: tuple[int, int], limit: str = ""
    ) -> Estimate:
        """Prints the estimated tokens and cost of requests with one image each, and returns them.

        Args:
          characters: characters of all texts except system messages.
          requests: how many.
          answer: tokens of one answer.
          size: height and width of an image in pixels.
          limit: what the line begins with, as "at most ".
        """
        seen = requests * (self._options.image_tokens or estimate.image_tokens(*size))
        characters += requests * len(self._system)
        found = estimate.estimate(self._endpoint.service, requests, characters, seen, requests * answer)
        print(f"{self.name} at {self._endpoint.place}: {limit}{found}", flush=True)
        return found


class ChatJudge:
    """Asks a chat model about images (`tasks.base.Judge`); any number of threads may call it.

    Its revision is that of the weights, as the user gave it, and a hash of all that is asked beside prompt
    and image.
    """

    def __init__(self, options: ChatOptions, question: Question):
        """Sends no request yet; raises as `ChatModel` does."""
        self._model, self._question = ChatModel(options, question.system, question.max_tokens), question
        self.name, self.workers, self.protocol = options.model, options.workers, question.protocol
        self.revision = self._model.revision(question.template)

    def __call__(self, doc: Doc, image: np.ndarray) -> Judgement:
        """Judges an image, [H, W, 3] uint8; `raw` is the reply. Raises as `ChatModel.ask` does."""
        question = self._question
        found, reply = self._model.ask(doc.doc_id, question.ask(doc), image, question.read)
        return dataclasses.replace(found, raw=reply)

    def announce(self, docs: Sequence[Doc], size: tuple[int, int]) -> Estimate:
        """Prints an estimate for judging one image of each prompt, of height and width `size`."""
        characters = sum(len(self._question.ask(doc)) for doc in docs)
        return self._model.announce(characters, len(docs), _ANSWER_TOKENS, size)


def _service(options: ChatOptions) -> Service:
    """Makes the service of a task's options; checks those that `Service` does not have."""
    for name in ("max_tokens", "image_tokens"):
        if getattr(options, name) < 0:
            raise TaskError(f"{options.name}.{name} must be at least 0, got {getattr(options, name)}")
    if not 0 <= options.temperature < float("inf"):
        raise TaskError(f"{options.name}.temperature must not be negative, got {options.temperature}")
    told = {f.name: getattr(options, f.name) for f in dataclasses.fields(Connection) if f.name != "extra"}
    extra = read_text(options.extra) if options.extra.endswith(".json") else options.extra
    return Service(name=options.name, extra=extra, **told)


@contextlib.contextmanager
def _as_task_error() -> Iterator[None]:
    """Turns a ServiceError, which ends the use of an endpoint, into a TaskError."""
    try:
        yield
    except ServiceError as error:
        raise TaskError(str(error)) from None
