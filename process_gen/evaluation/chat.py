"""A judge that is a chat model (`endpoint`)."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from process_gen.evaluation.endpoint import ChatModel, Estimate
from process_gen.evaluation.tasks.base import Doc, Judgement
from process_gen.evaluation.tasks.chat_task import ChatTask, Question

_ANSWER_TOKENS = 40  # of a short answer; thinking is not foreseen


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
        self._model, self._question = ChatModel(options, question.system, question.max_tokens), question
        self.name, self.workers, self.protocol = options.model, options.workers, question.protocol
        self.revision = self._model.revision(question.template)

    @property
    def spent(self) -> Counter[str]:
        """See `ChatModel`."""
        return self._model.spent

    def __call__(self, doc: Doc, image: np.ndarray) -> Judgement:
        """Judges an image, [H, W, 3] uint8; `raw` is the reply.

        Raises:
          Unjudged: no answer parsed, or the endpoint gave up on this image.
          TaskError: the endpoint cannot be reached, refuses the key or the model, or gives up on all.
        """
        question = self._question
        found, reply = self._model.ask(doc.doc_id, question.ask(doc), image, question.read)
        return dataclasses.replace(found, raw=reply)

    def estimate(
        self, docs: Sequence[Doc], images: int = 1, size: tuple[int, int] = (1024, 1024)
    ) -> Estimate:
        """What judging `images` images of each prompt will take; `size` is their height and width."""
        letters = images * sum(len(self._question.ask(doc)) for doc in docs)
        requests = images * len(docs)
        return self._model.estimate(letters, requests, requests, _ANSWER_TOKENS, size)

    def announce(
        self, docs: Sequence[Doc], images: int = 1, size: tuple[int, int] = (1024, 1024)
    ) -> Estimate:
        """Prints the estimate as one line, and returns it."""
        return self._model.announce(self.estimate(docs, images, size))
