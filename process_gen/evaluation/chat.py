"""A chat model behind an OpenAI-compatible endpoint, and a judge that asks it.

A question is asked up to `tries` times until an answer parses. If none does, or the endpoint gives up on the
request, it raises `Unjudged` and the run goes on. `ServiceError` ends the run: the endpoint cannot be
reached, refuses the key or the model, or fails one request after the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from process_gen.evaluation.tasks.base import Doc, Judgement
from process_gen.evaluation.tasks.chat_task import ChatOptions, Question
from process_gen.services import estimate
from process_gen.services.endpoint import Endpoint
from process_gen.services.estimate import Estimate
from process_gen.services.options import read_extra, without_none

Answer = TypeVar("Answer")

_ANSWER_TOKENS = 40  # of a judge's short answer, for the estimate; tokens of thinking are not counted


class ChatModel:
    """Answers questions; any number of threads may ask.

    Attributes:
      name: of the model.
      workers: requests side by side.
      revision: the one that the user gave, and a hash of what every request holds.
    """

    def __init__(self, options: ChatOptions, system: str, max_tokens: int, *texts: str):
        """Sends no request yet.

        Args:
          system: the system message.
          max_tokens: of an answer, unless the user says otherwise.
          texts: other parts of every question, for the revision.

        Raises:
          ServiceError: no model or no key, or an option is out of range.
        """
        self.name, self.workers = options.model, options.workers
        self._options, self._system, self._endpoint = options, system, Endpoint(options)
        asked = {"temperature": options.temperature, "max_tokens": options.max_tokens or max_tokens}
        self._fields = without_none({**asked, **read_extra(options.extra)})
        digest = self._endpoint.digest(system, self._fields, *texts)
        self.revision = f"{options.revision or 'as served'}, asked {digest[:8]}"

    def ask(
        self, what: str, text: str, image: np.ndarray | None, read: Callable[[str], Answer | None]
    ) -> tuple[Answer, Mapping[str, Any]]:
        """Asks about a text and an image, [H, W, 3] uint8, if there is one; see `Endpoint.ask`."""
        images = [] if image is None else [image]
        return self._endpoint.ask(what, self._system, text, images, self._fields, read)

    def print_estimate(
        self, characters: int, requests: int, answer: int, size: tuple[int, int], limit: str = ""
    ) -> Estimate:
        """Prints the estimated tokens and cost of requests with one image each, and returns them.

        Args:
          characters: of all texts except system messages.
          answer: tokens of one answer.
          size: height and width of an image in pixels.
          limit: what the line begins with, as "at most ".
        """
        seen = requests * (self._options.image_tokens or estimate.image_tokens(*size))
        characters += requests * len(self._system)
        found = estimate.estimate(self._options, requests, characters, seen, requests * answer)
        print(f"{self.name} at {self._endpoint.place}: {limit}{found}", flush=True)
        return found


class ChatJudge(ChatModel):
    """Asks a chat model about images (`tasks.base.Judge`)."""

    def __init__(self, options: ChatOptions, question: Question):
        super().__init__(options, question.system, question.max_tokens, question.template)
        self._question, self.protocol = question, question.protocol

    def __call__(self, doc: Doc, image: np.ndarray) -> Judgement:
        """Judges an image, [H, W, 3] uint8; `raw` is the reply. Raises as `ask` does."""
        found, reply = self.ask(doc.doc_id, self._question.ask(doc), image, self._question.read)
        return dataclasses.replace(found, raw=reply)

    def announce(self, docs: Sequence[Doc], size: tuple[int, int]) -> Estimate:
        """Prints an estimate for judging one image of each prompt, of height and width `size`."""
        characters = sum(len(self._question.ask(doc)) for doc in docs)
        return self.print_estimate(characters, len(docs), _ANSWER_TOKENS, size)
