"""A judge behind an OpenAI-compatible endpoint: OpenAI's own, vLLM, any that has chat completions.

A request has a system message and one user message: a text and an image as PNG.
An image whose answer does not parse is asked about again, and is then left
unjudged; so is one on whose request the endpoint gave up. Where nothing comes
back any more, or the key is refused, the run ends (`process_gen.services`).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from process_gen.evaluation.tasks.base import Doc, Judgement, TaskError, Unjudged
from process_gen.evaluation.tasks.chat_task import ChatTask, Question
from process_gen.evaluation.tasks.reading import read_text
from process_gen.services import estimate
from process_gen.services.endpoint import Endpoint
from process_gen.services.estimate import Estimate
from process_gen.services.options import GaveUp, Service, ServiceError, read_extra, without_none


class ChatJudge:
    """Asks a chat model about images; any number of threads may call it.

    Attributes:
      name: of the model.
      revision: of its weights, as the user gave it, and a hash of all that is
        asked beside prompt and image.
      protocol: name of the question.
      workers: requests side by side.
    """

    def __init__(self, options: ChatTask, question: Question):
        """Asks nothing yet.

        Raises:
          TaskError: no model or no key, or an option is out of range.
        """
        self.name, self.workers, self.protocol = options.model, options.workers, question.protocol
        self._options, self._question = options, question
        with _as_task_error():
            service = _service(options)
            service.check()
            _check(options)
            asked = {
                "temperature": options.temperature,
                "max_tokens": options.max_tokens or question.max_tokens,
                **read_extra(service.extra),
            }
            self._sampling = without_none(asked)
            self._endpoint = Endpoint(service)
        digest = self._endpoint.digest(question.system, self._sampling, question.template)
        self.revision = f"{options.revision or 'as served'}, asked {digest[:8]}"

    @property
    def spent(self) -> Counter[str]:
        """`requests`, `cached` answers, `unparsed` ones, `tokens_in` and `tokens_out` so far."""
        return self._endpoint.spent

    def __call__(self, doc: Doc, image: np.ndarray) -> Judgement:
        """Judges an image, [H, W, 3] uint8; `raw` is the reply.

        Raises:
          Unjudged: no answer parsed, or the endpoint gave up on this image.
          TaskError: the endpoint cannot be reached, refuses the key or the model, or gives up on all.
        """
        question = self._question
        try:
            with _as_task_error():
                found, reply = self._endpoint.ask(
                    doc.doc_id, question.system, question.ask(doc), [image], self._sampling, question.read
                )
        except GaveUp as error:
            raise Unjudged(str(error), error.raw) from None
        return dataclasses.replace(found, raw=reply)

    def estimate(
        self, docs: Sequence[Doc], images: int = 1, size: tuple[int, int] = (1024, 1024)
    ) -> Estimate:
        """What judging `images` images of each prompt will take; `size` is their height and width."""
        letters = images * sum(len(self._question.ask(doc)) + len(self._question.system) for doc in docs)
        requests = images * len(docs)
        seen = requests * (self._options.image_tokens or estimate.image_tokens(*size))
        answers = requests * estimate.ANSWER_TOKENS
        return estimate.estimate(self._endpoint.service, requests, letters, seen, answers)

    def announce(
        self, docs: Sequence[Doc], images: int = 1, size: tuple[int, int] = (1024, 1024)
    ) -> Estimate:
        """Prints the estimate as one line, and returns it."""
        found = self.estimate(docs, images, size)
        print(f"{self.name} at {self._endpoint.place}: {found}", flush=True)
        return found


def _service(options: ChatTask) -> Service:
    """The endpoint that the options of a task name."""
    own = {field.name for field in dataclasses.fields(Service)} & {
        f.name for f in dataclasses.fields(options)
    }
    told = {name: getattr(options, name) for name in own - {"name", "extra"}}
    extra = read_text(options.extra) if options.extra.endswith(".json") else options.extra
    return Service(name=options.name, extra=extra, **told)


def _check(options: ChatTask) -> None:
    """What only judges have: the number of tokens, and the temperature."""
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
