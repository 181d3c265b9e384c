"""What tasks with a judge behind a chat endpoint have in common: its options, and what is asked."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

from process_gen.evaluation.chat_options import ChatOptions
from process_gen.evaluation.tasks.base import Doc, Judge, Judgement, Task, TaskError


@dataclasses.dataclass(frozen=True)
class Question:
    """What a chat judge is asked about an image, and how its answer is read.

    Attributes:
      protocol: the name of all this in tables.
      system: the system message.
      template: of the text beside the image.
      values: what a prompt puts into the template's braces.
      read: the verdict in an answer; None where there is none.
      max_tokens: of an answer, unless the user says otherwise.
    """

    protocol: str
    system: str
    template: str
    values: Callable[[Doc], Mapping[str, str]]
    read: Callable[[str], Judgement | None]
    max_tokens: int

    def ask(self, doc: Doc) -> str:
        """The text beside an image."""
        return fill(self.template, self.values(doc))


@dataclasses.dataclass(frozen=True)
class ChatTask(ChatOptions, Task):
    """A task that may have a judge behind an OpenAI-compatible endpoint."""

    def chat_judge(self, question: Question) -> Judge:
        """The judge that these options name.

        Raises:
          TaskError: no model or no key, the client is not installed, an option is out of range.
        """
        try:  # here, so that the other tasks need no client
            from process_gen.evaluation.chat import ChatJudge
        except ModuleNotFoundError as error:
            if error.name != "openai":
                raise
            message = f'the judge of {self.name} needs the openai client: pip install "process_gen[judges]"'
            raise TaskError(message) from error
        return ChatJudge(self, question)


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with `{name}` replaced, once, for every name in `values`; other braces stay."""
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), template)
