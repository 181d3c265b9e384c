"""Arms in which somebody else plans or inspects while the model draws: who that may be.

    planner=scenes, inspector=scenes     the oracle of the scenes world, exact and offline
    planner=chat, inspector=chat         a chat model behind an endpoint (`chat_outsiders`)

What an outsider says depends on the prompt and the canvas alone, so a trajectory that was cut off comes out
the same (as far as a chat model answers the same). Name, revision and protocol of each are part of what the
images are addressed by.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from process_gen.common.names import check_name
from process_gen.evaluation.errors import TaskError
from process_gen.evaluation.reading import read_description
from process_gen.sampling.outside import Inspection, Outside, Situation, Unsaid
from process_gen.scenes import oracle
from process_gen.scenes.graph import Scene
from process_gen.scenes.parse import parse
from process_gen.scenes.requests import Request
from process_gen.trajectory.markup import Plan
from process_gen.trajectory.stages import Turn, steps_of

ROLES = ("planner", "inspector")

Requests = Mapping[str, Request]
"""What the prompts mean that the model is asked with; empty outside the scenes world."""


@runtime_checkable
class Paid(Protocol):
    """An outsider that says what its work may take before it begins."""

    def announce(self, prompts: Sequence[str], each: int, size: tuple[int, int]) -> Any:
        """Prints a line for at most `each` questions on every prompt; `size` of images: height, width."""


def make_outside(
    asked: Mapping[str, str], requests: Requests, options: Mapping[str, Mapping[str, str]]
) -> Outside:
    """Who takes the model's place.

    Args:
      asked: role -> `scenes` or `chat`.
      requests: see `Requests`.
      options: role -> options of its chat model, as text.

    Raises:
      TaskError: nobody of that name, prompts that the oracle cannot read, or bad options.
    """
    return Outside(**{role: _make(role, who, requests, options.get(role, {})) for role, who in asked.items()})


def _make(role: str, who: str, requests: Requests, options: Mapping[str, str]) -> Any:
    check_name(who, WHO, role, TaskError)
    if who == "chat":
        return _chat(role, options)
    if options:
        raise TaskError(f"{role}=scenes takes no options, got {', '.join(sorted(options))}")
    if not requests:
        raise TaskError(f"{role}=scenes knows the scenes world alone: {role}=chat takes any prompt")
    return {"planner": ScenesPlanner, "inspector": ScenesInspector}[role](requests)


WHO = ("scenes", "chat")
"""Of every role."""


def _chat(role: str, options: Mapping[str, str]) -> Any:
    try:  # here, so that the other arms need no client
        from process_gen.evaluation import chat_outsiders
    except ModuleNotFoundError as error:
        if error.name != "openai":
            raise
        message = f'{role}=chat needs the openai client: pip install "process_gen[judges]"'
        raise TaskError(message) from error
    return chat_outsiders.make(role, options)


def described(outside: Outside) -> dict[str, str]:
    """Role -> name, revision and protocol of who takes it, of the roles that somebody takes."""
    found = {role: getattr(outside, role) for role in ROLES}
    return {
        role: f"{one.name}, {one.revision}, {one.protocol}" for role, one in found.items() if one is not None
    }


@dataclasses.dataclass(frozen=True)
class ScenesPlanner:
    """Plans by the exact parser and the teacher's rules (`scenes.oracle.plan_next`)."""

    requests: Requests
    name = "scenes"
    revision = "1"
    protocol = "plan from the parsed canvas"

    def __call__(self, asked: Sequence[Situation]) -> list[Plan | Unsaid | None]:
        """The next step of each, None where the canvas is what the prompt asks for."""
        return [_said(self._plan, one) for one in asked]

    def _plan(self, one: Situation) -> Plan | None:
        request, steps = self.requests[one.prompt], steps_of(one.turns)
        canvas = parse(one.turns[-1].image, request.level) if one.turns else Scene()
        meant = _meant(steps[-1].draft, request) if steps else None
        return oracle.plan_next(request, canvas, len(steps), one.room, meant)


@dataclasses.dataclass(frozen=True)
class ScenesInspector:
    """Compares the parsed draft with its plan and the prompt (`scenes.oracle.look`)."""

    requests: Requests
    name = "scenes"
    revision = "1"
    protocol = "parsed draft against plan and prompt"

    def __call__(self, asked: Sequence[Situation]) -> list[Inspection | Unsaid]:
        """What is wrong with the newest image of each, and how to put it right."""
        return [_said(self._inspect, one) for one in asked]

    def _inspect(self, one: Situation) -> Inspection:
        request, steps = self.requests[one.prompt], steps_of(one.turns)
        scenes = [parse(image, request.level) for image in _canvases(one.turns)]
        before, draft = scenes[-2] if len(scenes) > 1 else None, scenes[-1]
        return Inspection(
            *oracle.look(request, draft, _meant(steps[-1].draft, request), before, len(steps) - 1)
        )


def _canvases(turns: Sequence[Turn]) -> list[np.ndarray]:
    """The newest image, and the canvas before its step."""
    earlier = steps_of(turns)[:-1]
    return [*(step.image for step in earlier[-1:]), turns[-1].image]


def _meant(draft: Turn, request: Request) -> Scene | None:
    return read_description(draft.plan.description, request.level) if isinstance(draft.plan, Plan) else None


def _said(say: Callable[[Situation], Any], one: Situation) -> Any:
    try:
        return say(one)
    except ValueError as error:  # the level has no room for it
        return Unsaid(str(error))
