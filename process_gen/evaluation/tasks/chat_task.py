"""Options of a chat model, and the base class of tasks whose judge is one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import ClassVar

from process_gen.evaluation.options import needing_client
from process_gen.evaluation.tasks.base import Doc, Judge, Judgement, Task
from process_gen.services.options import Connection


@dataclasses.dataclass(frozen=True)
class ChatOptions(Connection):
    """Options of a chat model behind an OpenAI-compatible endpoint.

    Attributes:
      temperature: of its answers.
      max_tokens: of an answer; 0 takes the limit of the question.
      extra: thinking is turned off in vLLM by `{"chat_template_kwargs": {"enable_thinking": false}}`, and
        models that know no `max_tokens` want `{"max_tokens": null, "max_completion_tokens": 2000}`.
      image_tokens: of one image, for the estimate of costs; 0 counts as OpenAI does.
    """

    name: ClassVar[str]
    temperature: float = 0.0
    max_tokens: int = 0
    image_tokens: int = 0
    _at_least: ClassVar = {**Connection._at_least, "max_tokens": 0, "image_tokens": 0}
    _not_negative: ClassVar = (*Connection._not_negative, "temperature")


@dataclasses.dataclass(frozen=True)
class Question:
    """What a chat judge is asked about an image, and how its answer is read.

    Attributes:
      protocol: names question and reading in tables.
      system: the system message.
      template: of the text beside the image, with names in braces (`values_of`).
      read: parses an answer into a verdict; None where it cannot.
      max_tokens: of an answer, unless the user says otherwise.
    """

    protocol: str
    system: str
    template: str
    read: Callable[[str], Judgement | None]
    max_tokens: int

    def ask(self, doc: Doc) -> str:
        """The text beside an image."""
        return fill(self.template, values_of(doc))


@dataclasses.dataclass(frozen=True)
class ChatTask(ChatOptions, Task):
    """A task that may have a judge behind an OpenAI-compatible endpoint."""

    def chat_judge(self, question: Question) -> Judge:
        """The judge that these options name.

        Raises:
          TaskError: the client is not installed.
          ServiceError: no model or no key, or an option is out of range.
        """
        with needing_client(f"the judge of {self.name}"):  # here, so that the other tasks need no client
            from process_gen.evaluation.chat import ChatJudge
        return ChatJudge(self, question)


def values_of(doc: Doc) -> Mapping[str, str]:
    """Name -> text for the braces of a template: `prompt`, and what the prompt's target has."""
    return {key: str(value) for key, value in doc.target.items()} | {"prompt": doc.input}


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with `{name}` replaced, once, for every name in `values`; other braces stay."""
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), template)
