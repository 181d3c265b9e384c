"""The three subsets in the world of scenes: right in the end, and only what is to be learned has weight."""

import contextlib
import dataclasses

import numpy as np
import pytest
from recipe_fakes import LEVEL, drawn, shows, taught, without

from process_gen.data.encode import encode_trajectory
from process_gen.data.formats.opening import open_stored
from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.experiment import builders, cli
from process_gen.recipe import building, faults, making
from process_gen.recipe.output import SampleFolder, read_lines
from process_gen.recipe.parts import Skip
from process_gen.recipe.prompts import ScenePrompts
from process_gen.recipe.scenes import Scenes
from process_gen.reports.listing import Listing
from process_gen.scenes import judge, parse, read_request, render
from process_gen.scenes.graph import Scene, make_object
from process_gen.trajectory.stages import targets_of

WORLD = Scenes("default", 0.5)
PROMPTS = [(number, ScenePrompts("default", 0).prompt("test", number)) for number in range(40)]
TOLD = dict(most_turns=8)


def rng(seed=0):
    return np.random.default_rng(seed)


def scene(*things):
    words = [thing.split() for thing in things]
    return Scene(tuple(make_object(LEVEL, shape, colour, cell) for colour, shape, cell in words))


def right(prompt, image):
    return judge(read_request(prompt), image).correct


@pytest.mark.parametrize("number, prompt", PROMPTS[:20])
def test_a_prompt_is_drawn_step_by_step_to_a_right_end(number, prompt):
    made = making.multi_turn(WORLD, prompt, rng(number), rewrites=0.7, attempts=1, **TOLD)
    assert right(prompt, made.turns[-1].image)
    for turn in made.turns:
        assert turn.after and not turn.refines and turn.before_weight == turn.image_weight == 1
    assert len(made.facts["kinds"]) == len(made.turns)


def test_kinds_of_changes_are_those_between_two_scenes():
    old = scene("red circle a1", "blue square b1")
    for new, kinds in [
        (scene("red circle a1", "blue square b1", "red star c1"), ("add",)),
        (scene("red circle a1"), ("remove",)),
        (scene("red circle a1", "green square b1"), ("modify",)),
        (scene("red circle a1", "blue square c3"), ("modify",)),
        (scene("red circle b1", "blue square a1"), ("swap",)),
        (scene("red circle b1", "blue square a1", "red star c1"), ("swap", "add")),
    ]:
        assert faults.changed(old, new) == kinds


def check_given(made, turns_learned_after=True):
    """Drafts up to the correction have no weight but on their inspections, and wrong ones are no targets."""
    corrected = False
    targets = targets_of(made.turns)
    for i, turn in enumerate(made.turns):
        corrected |= turn.refines
        if not corrected:
            assert turn.before_weight == turn.image_weight == 0 and turn.after_weight == 1 and turn.after
        elif turn.refines:
            assert turn.before_weight == 1 and turn.instruction
            assert turn.image is None or turn.image_weight == 1 and targets[i] == i
        if not turn.image_ok:
            assert targets[i] != i
    if made.turns[-1].image is None:
        assert made.turns[-1].refines and sum(turn.refines for turn in made.turns) == 1


@pytest.mark.parametrize("number, prompt", PROMPTS[:12])
@pytest.mark.parametrize("imageless", [0.0, 1.0])
def test_planted_errors_are_given_and_corrected(number, prompt, imageless):
    told = dict(imageless=imageless, **TOLD)
    for kind in (making.CONFLICTING, making.CONSISTENT, making.ALIGNED, making.MISALIGNED):
        try:
            made = making.planted(WORLD, prompt, rng(number), kind=kind, **told)
        except Skip as skip:  # a prompt of one thing may leave no way to plan it wrongly
            assert "plant" in str(skip)
            continue
        check_given(made)
        wrong = kind in (making.CONFLICTING, making.MISALIGNED)
        assert made.kind == kind and any(turn.refines for turn in made.turns) == wrong
        if made.turns[-1].image is not None:
            assert right(prompt, made.turns[-1].image)
        else:
            assert wrong and imageless == 1
    assert made.facts == {"origin": "planted"}


def test_the_batch_has_the_weights_of_what_is_given(tmp_path):
    """What encoding makes of a corrected draft, with an image and without: targets, weights, presence."""
    layout = builders.build_layout(cli.load_config("configs/scenes.py:debug"))
    sampled = drawn("a red circle and a blue square", 4, wrong=1.0)
    for imageless in (0.0, 1.0):
        made = making.self_sampled(WORLD, sampled, rng(), subset="alignment", imageless=imageless, **TOLD)
        with contextlib.closing(SampleFolder(tmp_path / str(imageless), {}, {})) as growing:
            growing.add("only", made)
        (one,) = open_stored(tmp_path / str(imageless), layout.image_size)
        fields = encode_trajectory(scenes_tokenizer(), layout, one)
        at = int(np.argmax(fields["refines"]))
        given, wanted = slice(0, at), fields["has_image"][at]
        assert not fields["before_weight"][given].any() and not fields["image_weight"][given].any()
        assert fields["after_weight"][given].all() and (fields["after_tokens"][given] >= 0).any(-1).all()
        assert wanted == (imageless == 0) and fields["before_weight"][at] == 1
        assert fields["target"][at - 1] == (1 if wanted else -1)  # of the wrong draft, with weight 0
        assert fields["is_last"][at] or imageless == 0


def of_model(subset, imageless, samples):
    kinds, reasons = {}, {}
    for seed, (prompt, sampled) in enumerate(samples):
        try:
            made = making.self_sampled(WORLD, sampled, rng(seed), subset=subset, imageless=imageless, **TOLD)
        except Skip as skip:
            reasons.setdefault(str(skip), []).append(skip.detail)
            continue
        check_given(made)
        if made.turns[-1].image is not None:
            assert right(prompt, made.turns[-1].image), made
        kinds.setdefault(made.kind, []).append(made)
    return kinds, reasons


def test_a_model_that_plans_wrongly_is_told_what_contradicts_the_prompt():
    samples = [(prompt, drawn(prompt, number, misplan=0.6)) for number, prompt in PROMPTS]
    kinds, reasons = of_model("conflict", 0.5, samples)
    conflicts = kinds[making.CONFLICTING]
    assert len(conflicts) > 5 and kinds[making.CONSISTENT]
    last = [made.turns[-1].image is None for made in conflicts]
    assert any(last) and not all(last)
    assert set(reasons) <= {faults.SEVERAL, "no conflict in the words, and not what the prompt asks for"}


def test_a_detour_of_a_model_is_no_conflict():
    samples = [(prompt, drawn(prompt, number, detour=1.0)) for number, prompt in PROMPTS]
    kinds, reasons = of_model("conflict", 0.0, samples)
    assert set(kinds) == {making.CONSISTENT} and not reasons
    samples = [(prompt, drawn(prompt, number, wrong=1.0)) for number, prompt in PROMPTS]
    kinds, reasons = of_model("conflict", 0.0, samples)  # an image is wrong, no word is
    assert not kinds and "a draft that does not show its plan" in reasons


def test_a_model_that_draws_wrongly_is_told_what_is_wrong_with_its_draft():
    samples = [(prompt, drawn(prompt, number, wrong=0.6)) for number, prompt in PROMPTS]
    kinds, _ = of_model("alignment", 0.0, samples)
    assert len(kinds[making.MISALIGNED]) > 10 and kinds[making.ALIGNED]
    drafts = [m for m in kinds[making.MISALIGNED] if any(t.refines and t.image is not None for t in m.turns)]
    assert len(drafts) > 10  # and `check_given` and `right` hold for each


def test_a_raised_count_keeps_the_share_of_self_sampled_drafts(tmp_path):
    listing = Listing(tmp_path / building.SAMPLES, {})
    for number, prompt in PROMPTS:
        one = dataclasses.replace(drawn(prompt, number, wrong=0.6), uid=f"{number:04d}")
        listing.add(one, number)
    for count in (2, 8):
        config = cli.load_config("configs/recipe/paper.py:debug")
        config.alignment.update(dict(aligned=count, misaligned=count, sampled=0.5))
        assert not building.build("alignment", config, tmp_path, lambda: None, lambda text: None).missing
        lines = list(read_lines(tmp_path / "alignment" / "trajectories.jsonl"))
        assert len(lines) == 2 * count
        assert sum(line["metadata"]["origin"] == "self-sampled" for line in lines) == count


def test_of_two_errors_in_one_draft_none_is_told():
    sampled = drawn("a red circle and a blue square and a green star", 3)
    image = without(without(sampled.turns[-1].image, 0), 0)
    plan = sampled.turns[-1].plan
    with pytest.raises(Skip, match=faults.SEVERAL):
        WORLD.draft(sampled.prompt, plan, image, rng())
    opinion = WORLD.draft(sampled.prompt, plan, without(sampled.turns[-1].image, 1), rng())
    assert not opinion.ok and "missing" in opinion.words or "no " in opinion.words
    assert shows(WORLD.correct(sampled.prompt, opinion, image)) == shows(sampled.turns[-1].image)


def test_something_unclear_in_a_cell_is_drawn_anew():
    planned = scene("red circle a1", "blue square b1")
    image = render(planned, LEVEL)
    image[1:7, 9:15] = np.random.default_rng(0).integers(0, 255, (6, 6, 3))
    mistake, repaired = faults.of_draft(planned, parse(image, LEVEL))
    assert mistake.kind == "missing" and len(repaired) == 2


@pytest.mark.parametrize(
    "prompt, shown, kind",
    [
        ("a red circle", ("blue circle a1",), "colour"),
        ("a red circle", ("red star a1",), "shape"),
        ("a red circle left of a blue square", ("red circle c2", "blue square b2"), "place"),
        ("a red circle", ("red circle a1", "red circle b1"), "count"),
        ("a red circle", ("red circle a1", "green star b1"), "extra"),
        ("two red circles", ("red circle a1", "red circle a1"), "place"),
    ],
)
def test_the_smallest_change_that_lets_a_prompt_come_true(prompt, shown, kind):
    mistake, _ = faults.of_plan(read_request(prompt), scene(*shown), rng(), LEVEL)
    assert mistake.kind == kind
    with pytest.raises(Skip):  # no one of the two has room to move past the other
        of_two = scene("red circle d2", "blue square a2")
        faults.of_plan(read_request("a red circle left of a blue square"), of_two, rng(), LEVEL)


def test_prompts_that_are_none_of_the_scenes_world_are_passed_over():
    with pytest.raises(Skip, match="none of the scenes world"):
        making.multi_turn(WORLD, "a photo of a dog", rng(), rewrites=0.0, attempts=1, **TOLD)


@pytest.mark.parametrize(
    "subset, fault, kind, alike",
    [
        ("alignment", "wrong", making.MISALIGNED, 1),
        ("conflict", "misplan", making.CONFLICTING, 0.7),
    ],
)
def test_without_cells_a_model_is_told_what_is_wrong(subset, fault, kind, alike):
    world, said, kinds, corrected = Scenes("hung", 0.5), [], [], 0
    for number in range(24):
        prompt, odds = ScenePrompts("hung", 0).prompt("test", number), {fault: 0.7}
        with contextlib.suppress(Skip):
            sampled = drawn(prompt, number, "hung", **odds)
            made = making.self_sampled(world, sampled, rng(), subset=subset, imageless=0.0, **TOLD)
            kinds.append(made.kind)
            check_given(made)
            if made.kind == kind:
                place = next(n for n, turn in enumerate(made.turns) if turn.refines)
                teachers = taught(prompt, number, "hung", **odds).turns
                said.append((made.turns[place - 1].after, teachers[place - 1].after))
                if made.turns[place].image is not None:
                    corrected += 1
                    np.testing.assert_array_equal(made.turns[place].image, teachers[place].image)
                    assert judge(read_request(prompt, "hung"), made.turns[-1].image).correct
    assert 5 < len(said) < len(kinds)
    assert bool(corrected) == (subset == "alignment")
    assert np.mean([one.split()[:2] == teacher.split()[:2] for one, teacher in said]) >= alike, said
