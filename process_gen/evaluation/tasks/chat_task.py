"""What tasks with a judge behind a chat endpoint have in common: its options, and what is asked."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

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
class ChatTask(Task):
    """A task that may have a judge behind an OpenAI-compatible endpoint.

    The key comes from the environment variable OPENAI_API_KEY alone. Endpoints
    other than OpenAI's may do without one.

    Attributes:
      model: the judge, as its endpoint calls it.
      base_url: of the endpoint, as `http://localhost:8000/v1`; by default
        OPENAI_BASE_URL, or OpenAI's own.
      revision: of the judge's weights, where its name does not tell.
      temperature: of the judge.
      max_tokens: of an answer; 0 is what the task's protocol has.
      extra: further fields of a request: a JSON object, or a `.json` file that
        holds one; null leaves a field out. Thinking is turned off in vLLM by
        `{"chat_template_kwargs": {"enable_thinking": false}}`, and models that
        know no `max_tokens` want
        `{"max_tokens": null, "max_completion_tokens": 2000}`.
      workers: requests side by side.
      timeout: seconds that one request may take.
      retries: of a request that failed on its way: time-outs, rate limits
        (`Retry-After` is kept to), errors of the server.
      tries: how often one image is asked about until the answer parses.
      cache: folder of answers; none by default.
      price_in, price_out: of a million tokens, for the estimate of costs.
      image_tokens: of one image, for the estimate; 0 reckons as OpenAI does.
    """

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
