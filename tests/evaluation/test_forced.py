"""Steps after the teacher's own against steps after the model's: drawn once, counted, compared."""

from __future__ import annotations

import dataclasses

import pytest
from evaluation_fakes import TeacherSampler, ask, canvas, sampled

from process_gen.evaluation import forced, pipeline
from process_gen.evaluation.counts import Counts
from process_gen.evaluation.results import load
from process_gen.evaluation.stages import evaluate
from process_gen.scenes.grammar import read_request


@dataclasses.dataclass(frozen=True)
class Apprentice(TeacherSampler):
    """Draws freely as the teacher does, but that from step `lost` on all canvases are empty; goes on from
    the teacher's steps by the teacher's next one."""

    lost: int = 2
    continued: list = dataclasses.field(default_factory=list)

    def draw(self, index, prompt, seed):
        trajectory = forced.context_of(read_request(prompt))
        turns = [
            turn if n < self.lost else dataclasses.replace(turn, image=canvas())
            for n, turn in enumerate(trajectory.turns)
        ]
        return sampled(dataclasses.replace(trajectory, turns=tuple(turns)), seed=seed)

    def continue_from(self, trajectories, turns, prompts, seeds):
        self.continued.extend(zip(prompts, turns, strict=True))
        assert self.config.max_steps == turns[0] + 1 and len(set(turns)) == 1
        drawn = []
        for one, given, seed in zip(trajectories, turns, seeds, strict=True):
            kept = sampled(dataclasses.replace(one, turns=one.turns[: given + 1]), seed=seed)
            drawn.append(dataclasses.replace(kept, given=given, stopped="cap"))
        return drawn


def evaluated(folder, sampler, **settings):
    cell = ask(options={"groups": "three_objects,four_objects"}, sampler=sampler, per_group=8)
    return evaluate([cell], folder, pictures=0, warm=False, **settings)


def test_the_gap_is_what_the_free_trajectories_lose(tmp_path):
    sampler = Apprentice()
    text, _, (cell,) = evaluated(tmp_path, sampler, forced_steps=True)
    measures = cell.process
    assert measures["forced_right_at_step_2"].mean == measures["forced_right_at_step_3"].mean == 1
    assert measures["right_at_step_2"].mean == 1 > measures["right_at_step_3"].mean == 0
    assert measures["forced_gap_at_step_2"] == (0, 0, 0) and measures["forced_gap_at_step_3"] == (1, 1, 1)
    assert "forced_gap_at_step_1" not in measures and "forced_gap_at_step_3" in text
    asked = len(sampler.continued)
    assert (
        asked
        == sum(sum(n for key, n in c.items() if key[0] == "states_at") for c in cell.forced.values())
        > 16
    )
    (again,) = evaluated(tmp_path, sampler, forced_steps=True)[2]
    assert len(sampler.continued) == asked and again.process == measures, "nothing is drawn twice"
    (later,) = evaluated(tmp_path, sampler, stage="report")[2]
    assert later.process == measures and load(tmp_path / "results.json")[0].process == measures
    for arm in ("best_of=2", "planner=chat"):
        one = dataclasses.replace(pipeline.remembered(tmp_path)[0], arm=arm)
        assert not pipeline.has_teacher(one), arm
    (alone,) = evaluated(tmp_path / "alone", Apprentice())[2]
    assert not any(name.startswith("forced") for name in alone.process)


def test_a_killed_run_goes_on(tmp_path):
    def killed(text):
        if "teacher's" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluated(tmp_path, Apprentice(rows=2), forced_steps=True, show=killed)
    first = Apprentice()
    (cell,) = evaluated(tmp_path, first, forced_steps=True)[2]
    whole = Apprentice()
    (other,) = evaluated(tmp_path / "other", whole, forced_steps=True)[2]
    assert cell.process == other.process and len(first.continued) == len(whole.continued) - 4


def test_contexts_are_right_and_budgets_hold(rng):
    request = read_request("a red circle, a blue star and a green ring")
    one, other = forced.context_of(request), forced.context_of(request)
    assert [turn.before for turn in one.turns] == [turn.before for turn in other.turns]
    assert not any(turn.refines for turn in one.turns) and not any(one.metadata["mistakes"])
    asked, sampler = ask("best_of=2", options={"groups": "four_objects"}, per_group=4)
    every = list(forced.plan(asked.wanted, asked.benchmark.requests, sampler))
    assert every and {one.draw.index for one in every} == {0}
    assert [one.step for one in every] == sorted(one.step for one in every)
    limited = sampler.with_config(max_steps=2)
    assert {one.step for one in forced.plan(asked.wanted, asked.benchmark.requests, limited)} == {1}
    baseline = sampler.with_config(mode="plan_only")
    assert not list(forced.plan(asked.wanted, asked.benchmark.requests, baseline))


def test_measures_are_worked_out_by_hand():
    def counts(right, states):
        told = {"states_at": states, "right_at": right}
        return Counts({(name, k): n for name, some in told.items() for k, n in enumerate(some)})

    given = {"a": counts([0, 1], [0, 1]), "b": counts([0, 1], [0, 1]), "c": counts([0, 0], [0, 1])}
    free = {"a": counts([1, 0], [1, 1]), "b": counts([1, 1], [1, 1]), "c": counts([1, 0], [1, 1])}
    found = forced.measures(given, free)
    assert list(found) == ["forced_right_at_step_2", "forced_gap_at_step_2"]
    assert found["forced_right_at_step_2"].mean == pytest.approx(2 / 3)
    assert found["forced_gap_at_step_2"].mean == pytest.approx(1 / 3)
    assert forced.measures({}, free) == {}
