"""Trajectories that are taken up again: what is kept stands, and the rest follows from it."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
from sampling_models import LAYOUT, SpelledTokenizer, make_model, random_params
from test_sampler import CONFIG, PROMPTS, same

from process_gen.sampling import PromptError, Sampler
from process_gen.trajectory.sampled import SampledTrajectory
from process_gen.trajectory.stages import Trajectory, Turn, refinement

CONTINUED = dataclasses.replace(CONFIG, max_turns=5)


@functools.cache
def sampler(**changes) -> Sampler:
    config = dataclasses.replace(CONTINUED, **changes)
    return Sampler(make_model(), random_params(), SpelledTokenizer(), config, rows=3)


def without_after(trajectory: Trajectory, turns: int) -> Trajectory:
    """The trajectory with nothing said after the last of so many turns."""
    kept = list(trajectory.turns)
    kept[turns - 1] = dataclasses.replace(kept[turns - 1], after=None)
    return dataclasses.replace(trajectory, turns=tuple(kept))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_trajectory_goes_on_as_it_did(temperature):
    one = sampler(temperature=temperature, decision_temperature=1.0)
    drawn = one.sample(PROMPTS)
    assert max(len(trajectory.turns) for trajectory in drawn) > 2
    for turns in range(4):
        some = [trajectory for trajectory in drawn if len(trajectory.turns) >= turns]
        again = one.continue_from(some, turns)
        for old, new in zip(some, again, strict=True):
            same(old, new)
            assert new.given == turns and new.mode is old.mode
            assert new.sampling_steps == (len(old.turns) - turns) * CONFIG.flow_steps
            if turns:
                alone = one.continue_from(without_after(old, turns), turns)
                assert isinstance(alone, SampledTrajectory)
                same(old, alone)


def test_what_is_replaced_is_what_counts():
    one = sampler(temperature=0.0, decision_temperature=1.0)
    old = max(one.sample(PROMPTS), key=lambda trajectory: len(trajectory.turns))
    other = np.random.default_rng(0).integers(0, 256, old.turns[0].image.shape, np.uint8)
    changed = dataclasses.replace(old.turns[0], image=other, before="<ins>#30#31</ins>", after="#40")
    edited = dataclasses.replace(old, turns=(changed, *old.turns[1:]), uid="mine", metadata={"by": "hand"})
    new, same_seed, other_prompt = one.continue_from(
        [edited] * 3,
        1,
        prompt=[old.prompt, old.prompt, "a blue star"],
        seed=[old.seed + 1, old.seed, old.seed],
    )
    assert new.turns[0] is changed and (new.uid, new.metadata) == ("mine", {"by": "hand"})
    assert (new.seed, same_seed.seed, other_prompt.prompt) == (old.seed + 1, old.seed, "a blue star")
    rest = [[t.image.tobytes() for t in some.turns[1:]] for some in (old, new, same_seed, other_prompt)]
    assert all(a != b for i, a in enumerate(rest) for b in rest[:i] if a or b)


def test_a_trajectory_of_the_data_is_taken_up():
    size = (*LAYOUT.image_size, 3)
    first = Turn(np.full(size, 9, np.uint8))
    second = refinement(np.full(size, 200, np.uint8), "#30", "#40")
    data = Trajectory("a red circle", (first, second), uid="data/7")
    new = sampler().continue_from(data, 2, seed=3)
    assert new.turns[:2] == (first, second) and (new.uid, new.seed, new.given) == ("data/7", 3, 2)
    assert len(new.turns) <= CONTINUED.max_turns
    (only,) = sampler(mode="single_pass").continue_from([data], [1])
    assert len(only.turns) == 1 and only.stopped == "model" and only.sampling_steps == 0


def test_what_cannot_be_kept_is_named():
    size = (*LAYOUT.image_size, 3)
    turn = Turn(np.zeros(size, np.uint8), "<ins>#30</ins>", "#40")
    data = Trajectory("a red circle", (turn, turn, turn))

    def refuses(message, trajectory, turns=3, **arguments):
        with pytest.raises(PromptError, match=message):
            sampler().continue_from([trajectory], turns, **arguments)

    def with_turn(**fields):
        return dataclasses.replace(data, turns=(*data.turns[:2], dataclasses.replace(turn, **fields)))

    refuses("4 turns are to be kept, the trajectory has 3", data, 4)
    refuses("6 turns are to be kept, a trajectory has 5", dataclasses.replace(data, turns=(turn,) * 6), 6)
    refuses("the text before an image has 8 tokens, 5 fit", with_turn(before="<ins>" + "#20" * 7))
    refuses("of a draft turn starts with <ins>", with_turn(before="red"))
    refuses("of a refine turn starts with <refine>", with_turn(refines=True))
    refuses("must not contain the token <des>", with_turn(after="<des>"))
    refuses("the image of a given turn is uint8", with_turn(image=np.zeros((8, 8, 3), np.uint8)))
    refuses("the prompt is empty", data, prompt=" ")
    refuses("1 trajectories, 2 numbers of turns", data, [1, 1])
    refine = dataclasses.replace(turn, refines=True, before="<refine>#30</refine>")
    twice = dataclasses.replace(data, turns=(turn, refine, refine))
    refuses("a step is corrected 2 times, .* layout.corrections = 1", twice)
