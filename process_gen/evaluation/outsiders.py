"""Outsiders: who may plan or inspect in an arm in place of the model that draws.

    planner=scenes, inspector=scenes     the oracle of the scenes world, exact and offline
    planner=chat, inspector=chat         a chat model behind an endpoint (`chat_outsiders`)

What an outsider says depends on the prompt, the turns so far and the steps left, so an interrupted trajectory
comes out the same when drawn again (if a chat model repeats its answers). Name, revision and protocol of each
are among the settings that name the images' folder (`draws.place`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from process_gen.evaluation.options import TaskError, from_text, needing_client
from process_gen.evaluation.reading import read_description
from process_gen.sampling.outside import Inspection, Outside, Situation, Unsaid
from process_gen.scenes import oracle
from process_gen.scenes.graph import Scene
from process_gen.scenes.parse import parse
from process_gen.scenes.requests import Request
from process_gen.trajectory.markup import Plan
from process_gen.trajectory.stages import Step, Turn, steps_of

ROLES = ("planner", "inspector")

Requests = Mapping[str, Request]
"""Text that the model is asked with -> what its prompt means; empty outside the scenes world."""


def make_outside(
    asked: Mapping[str, str], requests: Requests, options: Mapping[str, Mapping[str, str]]
) -> Outside:
    """Makes the planner and the inspector that take the model's place.

    Args:
      asked: role -> `scenes` or `chat`.
      requests: see `Requests`.
      options: role -> options of its chat model, as text.

    Raises:
      TaskError, ServiceError: the oracle outside the scenes world, or bad options.
    """
    made = {}
    for role, who in asked.items():
        told = options.get(role, {})
        if who == "chat":
            with needing_client(f"{role}=chat"):  # here, so that the other arms need no client
                from process_gen.evaluation.chat_outsiders import OPTIONS, ChatOutsider
            made[role] = ChatOutsider(from_text(OPTIONS[role], role, told))
        elif told:
            raise TaskError(f"{role}=scenes takes no options, got {', '.join(sorted(told))}")
        elif not requests:
            raise TaskError(f"{role}=scenes knows the scenes world alone: {role}=chat takes any prompt")
        else:
            made[role] = {"planner": ScenesPlanner, "inspector": ScenesInspector}[role](requests)
    return Outside(**made)


WHO = ("scenes", "chat")
"""Choices for every role."""


def described(outside: Outside) -> dict[str, str]:
    """Role -> name, revision and protocol of its outsider, for the roles that have one."""
    return {
        role: f"{one.name}, {one.revision}, {one.protocol}"
        for role in ROLES
        if (one := getattr(outside, role)) is not None
    }


@dataclasses.dataclass(frozen=True)
class _Oracle:
    """Base class of the oracles of the scenes world."""

    requests: Requests
    name = "scenes"
    revision = "1"
    protocol: ClassVar[str]

    def __call__(self, asked: Sequence[Situation]) -> list[Any]:
        """An answer to each; `Unsaid` where the oracle fails, as where the level lacks room for a prompt."""
        answers = []
        for one in asked:
            try:
                answers.append(self._say(one, self.requests[one.prompt], steps_of(one.turns)))
            except ValueError as error:
                answers.append(Unsaid(str(error)))
        return answers

    def _say(self, one: Situation, request: Request, steps: Sequence[Step]) -> Any:
        raise NotImplementedError


class ScenesPlanner(_Oracle):
    """Plans by the exact parser and the teacher's rules (`scenes.oracle.plan_next`)."""

    protocol = "plan from the parsed canvas"

    def _say(self, one: Situation, request: Request, steps: Sequence[Step]) -> Plan | None:
        """The next step, None where the canvas is what the prompt asks for."""
        canvas = parse(one.turns[-1].image, request.level) if one.turns else Scene()
        meant = _meant(steps[-1].draft, request) if steps else None
        return oracle.plan_next(request, canvas, len(steps), one.room, meant)


class ScenesInspector(_Oracle):
    """Compares the parsed draft with its plan and the prompt (`scenes.oracle.look`)."""

    protocol = "parsed draft against plan and prompt"

    def _say(self, one: Situation, request: Request, steps: Sequence[Step]) -> Inspection:
        """What is wrong with the newest image, and how to put it right."""
        before = parse(steps[-2].image, request.level) if len(steps) > 1 else None
        draft, meant = parse(one.turns[-1].image, request.level), _meant(steps[-1].draft, request)
        return Inspection(*oracle.look(request, draft, meant, before, len(steps) - 1))


def _meant(draft: Turn, request: Request) -> Scene | None:
    return read_description(draft.plan.description, request.level) if isinstance(draft.plan, Plan) else None
