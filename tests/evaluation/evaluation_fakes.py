"""A sampler made from the teacher: what a perfect model, or a flawed one, would draw."""

from __future__ import annotations

import dataclasses
import types
import zlib
from collections.abc import Callable

import numpy as np

from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.evaluation import pipeline
from process_gen.evaluation.stages import evaluate
from process_gen.evaluation.tasks.scenes import GROUPS
from process_gen.sampling import Progress, SamplerConfig
from process_gen.sampling.outside import Outside
from process_gen.scenes.grammar import read_request
from process_gen.scenes.graph import Scene, make_object
from process_gen.scenes.levels import get_level
from process_gen.scenes.render import render
from process_gen.scenes.teacher import baseline, teach
from process_gen.trajectory.sampled import SampledTrajectory
from process_gen.trajectory.stages import Mode, Trajectory, Turn

LEVEL = get_level("default")


def canvas(*things: str) -> np.ndarray:
    """Draws things such as "red circle b2" on the default level."""
    words = [thing.split() for thing in things]
    return render(
        Scene(tuple(make_object(LEVEL, shape, colour, cell) for colour, shape, cell in words)), LEVEL
    )


def sampled(trajectory: Trajectory, mode: Mode = Mode.PROCESS, seed: int = 0) -> SampledTrajectory:
    """A trajectory of the data as if a model had sampled it, 20 Euler steps an image."""
    turns = tuple(Turn(turn.image, turn.before, turn.after, turn.refines) for turn in trajectory.turns)
    return SampledTrajectory(
        trajectory.prompt, turns, mode=mode, seed=seed, sampling_steps=20 * len(turns), seconds=0.5
    )


@dataclasses.dataclass(frozen=True)
class TeacherSampler:
    """Draws what the teacher would, one round after another, as a sampler does.

    Attributes:
      config: of the sampler.
      rows: of a round.
      level: of what it draws.
      spoil: changes a trajectory, told its number.
      asked: every prompt and seed that it was asked for.
    """

    config: SamplerConfig = SamplerConfig(flow_steps=20)
    rows: int = 32
    level: str = "default"
    spoil: Callable[[int, SampledTrajectory], SampledTrajectory] = lambda index, trajectory: trajectory
    asked: list = dataclasses.field(default_factory=list)

    @property
    def model(self):
        sizes = types.SimpleNamespace(image_size=(get_level(self.level).image_size,) * 2)
        return types.SimpleNamespace(layout=sizes, config=types.SimpleNamespace(dtype="float32"))

    @property
    def tokenizer(self):
        return scenes_tokenizer()

    def with_config(self, **changes):
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **changes))

    outside = Outside()

    def with_outside(self):
        return self

    def check(self, prompts):
        """Every prompt can be drawn."""

    def draw(self, index: int, prompt: str, seed: int) -> SampledTrajectory:
        rng = np.random.default_rng(zlib.crc32(prompt.encode()))
        request = read_request(prompt, self.level)
        if self.config.mode is Mode.PROCESS:
            trajectory = teach(request, rng)
        else:
            trajectory = baseline(request, rng, self.config.mode)
        return self.spoil(index, sampled(trajectory, self.config.mode, seed))

    def stream(self, prompts, seeds):
        self.asked.extend(zip(prompts, seeds, strict=True))
        drawn = [(i, self.draw(i, *one)) for i, one in enumerate(zip(prompts, seeds, strict=True))]
        for done in range(self.rows, len(drawn) + self.rows, self.rows):
            yield Progress(min(done, len(drawn)), len(drawn), done, tuple(drawn[done - self.rows : done]))


CHECKPOINT = {"source": "the teacher", "which": "ema", "digest": "0"}


def ask(arm="process", task="scenes", options=None, sampler=None, **told):
    """A cell, and the sampler that draws it: the teacher by default."""
    told = {"checkpoint": CHECKPOINT, **told}
    return pipeline.ask(sampler or TeacherSampler(), task, options or {}, arm, **told)


def evaluated(folder, sampler=None, arms=("process",), seeds=(0,), per_group=6, options=None, **settings):
    """The cells of the scenes benchmark for a sampler, and what the command would print."""
    told = dict(options=options, sampler=sampler, seeds=seeds, per_group=per_group)
    cells = [ask(arm, **told) for arm in arms]
    settings = {"pictures": 0, "warm": False, **settings}
    text, _, found = evaluate(cells, folder, **settings)
    return found, text


def with_final_image(trajectory: SampledTrajectory, image: np.ndarray) -> SampledTrajectory:
    """The trajectory with another last draft and no correction of it."""
    *before, last = trajectory.steps
    kept = [turn for step in before for turn in step.turns]
    return dataclasses.replace(trajectory, turns=(*kept, dataclasses.replace(last.draft, image=image)))


def spoiled(*groups: str, per_group: int = 6) -> TeacherSampler:
    """A sampler that leaves the canvas empty in some groups of a benchmark of so many prompts a group."""

    def spoil(index, trajectory):
        wrong = GROUPS[index // per_group] in groups
        return with_final_image(trajectory, canvas()) if wrong else trajectory

    return TeacherSampler(spoil=spoil)
