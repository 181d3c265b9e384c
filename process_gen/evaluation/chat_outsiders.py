"""A chat model that plans or inspects while another model draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any, ClassVar

from process_gen.common import files
from process_gen.evaluation.chat import ChatModel, Estimate
from process_gen.evaluation.options import read_text
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


OPTIONS = {kind.name: kind for kind in (PlannerOptions, InspectorOptions)}
"""Role -> its options."""


class ChatOutsider(ChatModel):
    """Asks a chat model for every next step, or about every image that may be corrected."""

    def __init__(self, options: PlannerOptions):
        """`options` are of the role; raises as `ChatModel` does, and TaskError for a file that is missing."""
        self.role = options.name
        system, self._question, self._read = _ROLES[self.role]
        guide = read_text(options.guide).strip() if options.guide.endswith(".txt") else options.guide
        self.protocol = f"chat {self.role} 1"
        super().__init__(options, "\n\n".join(filter(None, [system, guide])), _MAX_TOKENS, self.protocol)
        self._pool = futures.ThreadPoolExecutor(options.workers, f"{self.role} {options.model}")

    def __call__(self, asked: Sequence[Situation]) -> list[Plan | Inspection | Unsaid | None]:
        """An answer to each, asked in `workers` threads; `Unsaid` where the model gives none.

        None is a planner's answer that no step is left. Raises ServiceError as `ChatModel.ask` does.
        """
        return list(self._pool.map(self._answer, asked))

    def _answer(self, one: Situation) -> Plan | Inspection | Unsaid | None:
        image = one.turns[-1].image if one.turns else None
        try:  # in a tuple, since None would mean an answer that cannot be read
            what, read = f"{self.role}, {one.prompt!r}", lambda answer: (self._read(one, answer),)
            return self.ask(what, self._question(one), image, read)[0][0]
        except Unjudged as error:
            return Unsaid(str(error))

    def announce(self, prompts: Sequence[str], each: int, size: tuple[int, int]) -> Estimate:
        """Prints the estimated tokens and cost of at most `each` questions per prompt, and returns them."""
        requests = each * len(prompts)
        characters = each * sum(map(len, prompts)) + requests * each * _STEP_CHARACTERS // 2
        return self.print_estimate(characters, requests, _ANSWER_TOKENS, size, f"{self.role}, at most ")


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


def _read_plan(one: Situation, answer: str) -> Plan | None:
    found = _object(answer)
    if found.get("done") is True:
        if not one.turns:
            raise ValueError("nothing is drawn yet, so it is not done")
        return None
    plan = Plan(_text(found, "instruction"), _text(found, "description"))
    one.check(plan)
    return plan


def _read_inspection(one: Situation, answer: str) -> Inspection:
    found = _object(answer)
    correction = None if found.get("correction") is None else _text(found, "correction")
    inspection = Inspection(_text(found, "inspection"), correction)
    one.check(inspection)
    return inspection


_ROLES = {
    "planner": (PLANNER, _next_step, _read_plan),
    "inspector": (INSPECTOR, _newest, _read_inspection),
}
"""Role -> system message, question about a situation, and how its answer is read: ValueError if it cannot."""


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
