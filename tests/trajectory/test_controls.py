"""What every closing token predicts."""

import jax.numpy as jnp
import numpy as np

from process_gen.trajectory.batch import PAD_ID as PAD
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.controls import ControlIds, labels, next_tokens
from process_gen.trajectory.layout import Layout

IDS = ControlIds(end_of_text=2, im_start=3, im_end=4, vision_start=5, vision_end=6, ins=7, refine=11)
LAYOUT = Layout(
    image_size=(8, 8), latent_grid=(1, 1), latent_values=1, prompt=4, plan=4, inspect=4, refine=4, steps=4
)
TEXT, ABSENT = [3, 20, 4, PAD], [PAD] * 4


def batch(steps, mode_of_first_row="process"):
    """One row; `steps` is a list of (reset, last, plan, inspect, refine)."""
    fields = {name: np.zeros((1, 4), bool) for name in ("reset", "last", "present", "sketch_ok")}
    fields["plan_ok"] = np.ones((1, 4), bool)
    texts = {name: np.full((1, 4, 4), PAD, np.int32) for name in ("plan", "inspect", "refine")}
    index, trajectory = np.zeros((1, 4), np.int32), -1
    for i, (reset, last, *found) in enumerate(steps):
        trajectory += reset
        fields["reset"][0, i], fields["last"][0, i], fields["present"][0, i] = reset, last, True
        index[0, i] = trajectory
        for name, there in zip(texts, found, strict=True):
            texts[name][0, i] = TEXT if there else ABSENT
    prompts = np.full((1, LAYOUT.trajectories, LAYOUT.prompt), PAD, np.int32)
    prompts[0, : trajectory + 1] = TEXT
    image = np.zeros((1, 4, 8, 8, 3), np.uint8)
    arrays = dict(
        prompt_tokens=prompts,
        prompt_index=index,
        sketch=image,
        refined=image,
        **fields,
        **{f"{name}_tokens": value for name, value in texts.items()},
    )
    return Batch(**{name: jnp.asarray(value) for name, value in arrays.items()})


def test_a_process_trajectory_learns_when_to_refine_go_on_and_stop():
    found = labels(batch([(1, 0, 1, 1, 1), (0, 0, 1, 0, 0), (0, 1, 1, 1, 0)]), IDS)
    np.testing.assert_array_equal(found["prompt_end"][0], [IDS.ins, PAD])
    np.testing.assert_array_equal(found["plan"][0, 0], [20, 4, IDS.vision_start, PAD])
    # Step 0 is inspected and refined, step 1 is a slip, step 2 ends the trajectory.
    np.testing.assert_array_equal(found["sketch_end"][0], [IDS.im_start, IDS.ins, IDS.im_start, PAD])
    np.testing.assert_array_equal(found["inspect"][0, 0], [20, 4, IDS.refine, PAD])
    np.testing.assert_array_equal(found["inspect"][0, 2], [20, 4, IDS.end_of_text, PAD])
    np.testing.assert_array_equal(found["refine"][0, 0], [20, 4, IDS.vision_start, PAD])
    np.testing.assert_array_equal(found["refined_end"][0], [IDS.ins, PAD, PAD, PAD])


def test_the_baselines_open_an_image_and_stop():
    single = labels(batch([(1, 1, 0, 0, 0)]), IDS)
    np.testing.assert_array_equal(single["prompt_end"][0], [IDS.vision_start, PAD])
    np.testing.assert_array_equal(single["sketch_end"][0], [IDS.end_of_text, PAD, PAD, PAD])
    assert all((single[name] == PAD).all() for name in ("plan", "inspect", "refined_end"))
    planned = labels(batch([(1, 1, 1, 0, 0), (1, 1, 0, 0, 0)]), IDS)
    np.testing.assert_array_equal(planned["prompt_end"][0], [IDS.ins, IDS.vision_start])


def test_the_words_of_a_wrong_plan_are_no_labels_and_what_follows_is():
    steps = batch([(1, 0, 1, 1, 1), (0, 1, 1, 1, 0)])
    right, wrong = labels(steps, IDS), labels(steps.replace(plan_ok=jnp.asarray([[False] + [True] * 3])), IDS)
    np.testing.assert_array_equal(wrong["plan"][0, 0], [PAD, PAD, IDS.vision_start, PAD])
    np.testing.assert_array_equal(wrong["plan"][0, 1:], right["plan"][0, 1:])
    for name in right.keys() - {"plan"}:
        np.testing.assert_array_equal(wrong[name], right[name])


def test_a_full_slot_still_closes():
    tokens = jnp.asarray([[3, 20, 21, 4], [3, 4, PAD, PAD]])
    np.testing.assert_array_equal(next_tokens(tokens, 9), [[20, 21, 4, 9], [4, 9, PAD, PAD]])
