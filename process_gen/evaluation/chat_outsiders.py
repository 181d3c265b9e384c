"""A chat model that plans or inspects while another model draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any, ClassVar

from process_gen.common import files
from process_gen.evaluation.chat import ChatModel, Estimate
from process_gen.evaluation.options import from_text, read_text
from process_gen.evaluation.tasks.base import Unjudged
from process_gen.evaluation.tasks.chat_task import ChatOptions
from process_gen.sampling.outside import Inspection, Situation, Unsaid
from process_gen.trajectory.markup import Plan
from process_gen.trajectory.stages import Turn, steps_of

PLANNER = """You plan a picture that another model draws step by step. You see what is asked for, the \
steps so far and the canvas. Say what the next step adds or changes, and describe the whole picture as it \
should stand after that step. A step adds one or two things. Where something on the canvas is wrong, put it \
right first. Answer with one JSON object and nothing else: {"instruction": "...", "description": "..."}, or \
{"done": true} where the canvas shows all that is asked for and nothing else."""

INSPECTOR = """You inspect a picture that another model draws step by step. You see what is asked for in \
the end, what this step was to do, how the picture should stand after it, and the picture. What is not to be \
drawn in this step is no error. Answer with one JSON object and nothing else: {"inspection": "what you see", \
"correction": "what to change"}, with null as the correction where nothing is wrong."""

_MAX_TOKENS, _ANSWER_TOKENS = 1_000, 60
_STEP_CHARACTERS = 200  # characters of one plan, for the estimate


@dataclasses.dataclass(frozen=True)
class PlannerOptions(ChatOptions):
    """Options of `planner=chat`: those of `ChatOptions`, and

    Attributes:
      guide: what it should know of the drawing model's language: a text, or a `.txt` file that holds it.
    """

    name: ClassVar[str] = "planner"
    guide: str = ""


@dataclasses.dataclass(frozen=True)
class InspectorOptions(PlannerOptions):
    """Options of `inspector=chat`: the same."""

    name: ClassVar[str] = "inspector"


def make(role: str, options: Mapping[str, str]) -> ChatPlanner | ChatInspector:
    """Makes the chat model of a role, `planner` or `inspector`.

    Raises:
      TaskError: no model or no key, or a bad option.
    """
    if role == "planner":
        return ChatPlanner(from_text(PlannerOptions, role, options))
    return ChatInspector(from_text(InspectorOptions, role, options))


class _Chat:
    """Base class of both roles; any number of threads may call it."""

    role: ClassVar[str]
    system: ClassVar[str]

    def __init__(self, options: PlannerOptions):
        guide = read_text(options.guide).strip() if options.guide.endswith(".txt") else options.guide
        self._model = ChatModel(options, "\n\n".join(filter(None, [self.system, guide])), _MAX_TOKENS)
        self.name, self.protocol = options.model, f"chat {self.role} 1"
        self.revision = self._model.revision(self.protocol)
        self._pool = futures.ThreadPoolExecutor(options.workers, f"{self.role} {options.model}")

    def _ask(self, asked: Sequence[Situation], question: Callable, read: Callable) -> list[Any]:
        """An answer to each, asked in `workers` threads; `Unsaid` where the model gives none.

        Raises:
          TaskError: the endpoint cannot be reached, refuses the key or the model, or gives up on all.
        """

        def one(situation: Situation) -> Any:
            image = situation.turns[-1].image if situation.turns else None
            try:
                told = question(situation), image, lambda answer: read(situation, answer)
                return self._model.ask(f"{self.role}, {situation.prompt!r}", *told)[0]
            except Unjudged as error:
                return Unsaid(str(error))

        return list(self._pool.map(one, asked))

    def announce(self, prompts: Sequence[str], each: int, size: tuple[int, int]) -> Estimate:
        """Prints the estimated tokens and cost of at most `each` questions per prompt, and returns them."""
        requests = each * len(prompts)
        characters = each * sum(map(len, prompts)) + requests * each * _STEP_CHARACTERS // 2
        return self._model.announce(characters, requests, _ANSWER_TOKENS, size, f"{self.role}, at most ")


class ChatPlanner(_Chat):
    """Asks a chat model for every next step."""

    role, system = "planner", PLANNER

    def __call__(self, asked: Sequence[Situation]) -> list[Plan | Unsaid | None]:
        """The next step of each, None where the model says that it is done."""
        answers = self._ask(asked, _next_step, _read_plan)
        return [None if answer is _DONE else answer for answer in answers]


class ChatInspector(_Chat):
    """Asks a chat model about every image that may be corrected."""

    role, system = "inspector", INSPECTOR

    def __call__(self, asked: Sequence[Situation]) -> list[Inspection | Unsaid]:
        """What it sees on the newest image of each."""
        return self._ask(asked, _newest, _read_inspection)


_DONE = object()
"""Stands for a planner's answer that no step is left; None would mean an answer that cannot be read."""


def _next_step(one: Situation) -> str:
    steps = [f"{n}. {_told(step.draft)}" for n, step in enumerate(steps_of(one.turns), 1)]
    return "\n".join(
        [
            f"Asked for: {one.prompt}",
            *(["Steps so far:", *steps] if steps else ["Nothing is drawn yet."]),
            f"Steps that are left: {one.room}",
            *(["The picture shows the canvas as it stands."] if steps else []),
        ]
    )


def _newest(one: Situation) -> str:
    told = _told(steps_of(one.turns)[-1].draft)
    return f"Asked for in the end: {one.prompt}\nThis step: {told}\nThe picture shows what was drawn."


def _told(draft: Turn) -> str:
    if not isinstance(draft.plan, Plan):
        return draft.before or "nothing was planned"
    return f"{draft.plan.instruction}. Afterwards: {draft.plan.description}"


def _read_plan(one: Situation, answer: str) -> Any:
    found = _object(answer)
    if found.get("done") is True:
        if not one.turns:
            raise ValueError("nothing is drawn yet, so it is not done")
        return _DONE
    plan = Plan(_text(found, "instruction"), _text(found, "description"))
    one.check(plan)
    return plan


def _read_inspection(one: Situation, answer: str) -> Inspection:
    found = _object(answer)
    correction = None if found.get("correction") is None else _text(found, "correction")
    inspection = Inspection(_text(found, "inspection"), correction)
    one.check(inspection)
    return inspection


def _object(answer: str) -> Mapping[str, Any]:
    """The JSON object in an answer, whatever stands around it."""
    text = answer[answer.find("{") : answer.rfind("}") + 1]
    found = files.from_json(text) if text else None
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")
    return found


def _text(found: Mapping[str, Any], key: str) -> str:
    value = found.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} must be a text that is not empty")
    return " ".join(value.split())
