"""What the host knows of the trajectories being sampled, one per row of the batch; progress of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from process_gen.models.unified import UnifiedModel
from process_gen.sampling import decisions
from process_gen.sampling.config import PromptError, SamplerConfig
from process_gen.sampling.decisions import Opens
from process_gen.sampling.outside import Inspection, Situation
from process_gen.sampling.prompts import Prompt, encode_prompt, encode_turn
from process_gen.trajectory import markup
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.sampled import SampledTrajectory, Stopped
from process_gen.trajectory.stages import Mode, Trajectory, Turn, steps_of


@dataclasses.dataclass
class Row:
    """A trajectory that is being sampled.

    Attributes:
      index: number of the prompt.
      prompt, seed: what is drawn.
      given: turns to begin with, which are read and not drawn.
      source: the trajectory that is continued; None for a new one.
      turns: those that are finished, given ones included.
      opens: what follows them.
      images: how many were drawn.
      seconds: its share of the wall time.
      before: the text before the next image, if it comes from a planner or an inspector.
      inspection: an inspector's answer about the current image.
      lost: why the trajectory is given up; empty while it is not.
      doubt: the probability of a correction in the current turn's last decision that allowed one.
      doubts: those of the finished turns.
    """

    index: int
    prompt: Prompt
    seed: int
    given: tuple[Turn, ...] = ()
    source: Trajectory | None = None
    turns: list[Turn] = dataclasses.field(default_factory=list)
    opens: Opens = Opens.IMAGE
    images: int = 0
    seconds: float = 0.0
    before: str | None = None
    inspection: Inspection | None = None
    lost: str = ""
    doubt: float | None = None
    doubts: list[float] = dataclasses.field(default_factory=list)

    @property
    def given_turn(self) -> Turn | None:
        """The current turn if it is a given one, else None."""
        return self.given[len(self.turns)] if len(self.turns) < len(self.given) else None

    def choices(self, stream: str, config: SamplerConfig, layout: Layout) -> frozenset[Opens]:
        """The allowed decisions at one of `turn.RNG_STREAMS`; given turns and inspectors restrict them."""
        told = self.given[len(self.turns) :]
        if stream == "after_prompt" and told:
            return _opening(told[0])
        if stream == "after_image" and layout.after and told and told[0].after is not None:
            return frozenset({Opens.INSPECT})
        if stream != "after_prompt" and len(told) > 1:
            return _opening(told[1])
        found = decisions.choices(stream, config.mode, layout, self._corrections, config.inspections)
        if self.inspection is None:
            return found
        if stream == "after_image" and Opens.INSPECT in found and self.inspection.text is not None:
            return frozenset({Opens.INSPECT})
        if self.inspection.correction is not None and Opens.REFINE in found:
            return frozenset({Opens.REFINE})
        return found - {Opens.INSPECT, Opens.REFINE}

    def awaits_plan(self, config: SamplerConfig, layout: Layout) -> bool:
        """Whether to ask a planner: a plan may follow, and the next turn is not given, nor a correction."""
        free = self.given_turn is None and self.opens != Opens.REFINE and not self.lost
        stream = "after_text" if self.turns else "after_prompt"
        return free and Opens.PLAN in decisions.choices(stream, config.mode, layout)

    def situation(
        self, config: SamplerConfig, turns: Sequence[Turn], check: Callable[[Any], None]
    ) -> Situation:
        """What a planner or an inspector is told; `turns` are those so far."""
        steps = sum(not turn.refines for turn in turns)
        left = [1 - steps if config.mode == Mode.PLAN_ONLY else config.max_turns - len(turns)]
        if config.max_steps:
            left.append(config.max_steps - steps)
        if config.max_flow_steps:
            left.append(config.max_flow_steps // config.flow_steps - self.images)
        words = " ".join(filter(None, (self.prompt.text, self.prompt.instruction)))
        return Situation(words, tuple(turns), max(min(left), 0), check)

    @property
    def _corrections(self) -> int:
        """Refine turns of the current step, the current turn included."""
        if self.opens != Opens.REFINE:
            return 0
        run = next((n for n, turn in enumerate(reversed(self.turns)) if not turn.refines), len(self.turns))
        return 1 + run

    def add(self, texts: Mapping[str, str], image: np.ndarray, opens: Opens) -> None:
        """Finishes the current turn with its image and decoded `before` and `after`; `opens` comes next."""
        if (turn := self.given_turn) is None:
            turn = Turn(image.copy(), texts.get("before"), texts.get("after"), self.opens == Opens.REFINE)
            self.images += 1
        elif turn.after is None and "after" in texts:
            turn = dataclasses.replace(turn, after=texts["after"])
        self.turns.append(turn)
        correction = self.inspection.correction if self.inspection and opens == Opens.REFINE else None
        self.before = None if correction is None else markup.write_refine(correction)
        self.doubts += [] if self.doubt is None else [self.doubt]
        self.opens, self.inspection, self.doubt = opens, None, None

    def stopped(self, config: SamplerConfig) -> Stopped | None:
        """Whether the model or a limit ends the trajectory after its last turn; None while it goes on."""
        if self.opens == Opens.END:
            return "model"
        if len(self.turns) < len(self.given):
            return None
        most = config.max_flow_steps // config.flow_steps if config.max_flow_steps else self.images + 1
        steps = sum(not turn.refines for turn in self.turns) if self.opens != Opens.REFINE else 0
        enough = 0 < config.max_steps <= steps  # and what follows would begin another one
        return "cap" if enough or len(self.turns) >= config.max_turns or self.images >= most else None

    def trajectory(self, config: SamplerConfig, stopped: Stopped) -> SampledTrajectory:
        """The trajectory so far; a drawn image that a refine turn corrects has `image_ok` False."""
        turns = list(self.turns)
        for i in range(len(self.given), len(turns) - 1):
            if turns[i + 1].refines:
                turns[i] = dataclasses.replace(turns[i], image_ok=False)
        return SampledTrajectory(
            prompt=self.prompt.text,
            turns=tuple(turns),
            uid=self.source.uid if self.source else "",
            metadata=self.source.metadata if self.source else {},
            prompt_image=self.prompt.image,
            instruction=self.prompt.instruction,
            mode=config.mode,
            seed=self.seed,
            stopped=stopped,
            given=len(self.given),
            sampling_steps=self.images * config.flow_steps,
            seconds=self.seconds,
            doubts=tuple(self.doubts) or None,
        )


Finished = tuple[tuple[int, SampledTrajectory], ...]
"""Numbers of prompts, and their trajectories."""

Lost = tuple[tuple[int, str], ...]
"""Numbers of prompts whose trajectories were given up, each with the reason."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a run after one round of turns.

    Attributes:
      done, total: trajectories finished or given up, and asked for.
      turns: turns drawn so far, over all trajectories.
      finished: those that ended in this round.
      lost: those given up in it, because a planner or an inspector had no usable answer.
    """

    done: int
    total: int
    turns: int
    finished: Finished
    lost: Lost = ()


def in_order(stream: Iterator[Progress], count: int) -> list[SampledTrajectory]:
    """All of `count` trajectories in the order of their numbers; PromptError where one was given up."""
    drawn: dict[int, SampledTrajectory] = {}
    for progress in stream:
        for number, why in progress.lost:
            raise PromptError(f"trajectory {number} was given up: {why}")
        drawn.update(progress.finished)
    return [drawn[i] for i in range(count)]


def occupied(rows: Sequence[Row | None]) -> np.ndarray:
    """[B] bool: rows that hold a trajectory."""
    return np.array([row is not None for row in rows])


def continued_row(
    model: UnifiedModel,
    tokenizer: Any,
    config: SamplerConfig,
    index: int,
    source: Trajectory,
    turns: int,
    text: str | None,
    seed: int,
) -> Row:
    """The row that continues `source` after its first `turns` turns, which are given.

    `text`, if any, replaces the last text of the prompt: its instruction, or else its only text.

    Raises:
      PromptError: there are not so many turns, or they do not fit the model.
    """
    if not 0 <= turns <= len(source.turns):
        raise PromptError(f"{turns} turns are to be kept, the trajectory has {len(source.turns)}")
    given, layout = source.turns[:turns], model.layout
    most = min(config.max_turns, layout.turns) if layout.context == "full" else config.max_turns
    if turns > most:
        raise PromptError(f"{turns} turns are to be kept, a trajectory has {most} (sampling.max_turns)")
    corrections = max((len(step.refines) for step in steps_of(given)), default=0)
    if corrections > layout.corrections:
        raise PromptError(
            f"a step is corrected {corrections} times, the model was made for layout.corrections = "
            f"{layout.corrections}"
        )
    prompt = Prompt(source.prompt, source.prompt_image, source.instruction)
    if text is not None:
        prompt = dataclasses.replace(prompt, **{"instruction" if source.instruction else "text": text})
    encode_prompt(model, tokenizer, prompt)
    for turn in given:
        encode_turn(model, tokenizer, turn)
    return Row(index, prompt, seed, given, source)


def _opening(turn: Turn) -> frozenset[Opens]:
    """The one decision that opens a given turn."""
    if turn.refines:
        return frozenset({Opens.REFINE})
    return frozenset({Opens.IMAGE if turn.before is None else Opens.PLAN})
