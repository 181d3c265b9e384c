"""From the JSON of a record to the loss of every token, reckoned again from what the docs say."""

import collections

import numpy as np
import pytest

from process_gen.data.encode import encode_trajectory
from process_gen.data.packing import join_row
from process_gen.data.tokenizers import SentencePieceTokenizer
from process_gen.losses.anatomy import anatomy
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.controls import ControlIds
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.record import trajectory_from_json
from process_gen.trajectory.stages import Stage, Trajectory, Turn
from tests.data.train_tokenizer import train
from tests.losses.test_anatomy import TABLE

TEXTS = ("a red circle", "draw a blue square.", "the circle should be left of the square", "a star in b2")
TOKENIZER = SentencePieceTokenizer(train(TEXTS))
IDS = ControlIds.of(TOKENIZER)
LAYOUT = Layout(
    image_size=(8, 8),
    latent_grid=(2, 2),
    latent_values=48,
    prompt=40,
    before=70,
    after=40,
    prompt_image=True,
    instruction=40,
    turns=20,
    trajectories=3,
    copies=2,
    context="step",
    corrections=2,
)


def random_record(rng):
    """Any record: inspected, corrected, given, wrong, and with an end of words alone."""

    def text():
        return str(rng.choice(TEXTS))

    def turn(fields):
        weights = {
            f"{part}_weight": float(rng.choice([0.0, 0.5, 2.0])) for part in ("before", "image", "after")
        }
        given = {name: value for name, value in weights.items() if rng.random() < 0.4}
        inspected = {"inspect": text()} if rng.random() < 0.5 else {}
        return {**fields, "image": "a.png", **given, **inspected}

    turns = []
    for _ in range(int(rng.integers(1, 4))):
        plan = {"instruction": text(), "description": text()} if rng.random() < 0.8 else {}
        turns.append(turn(plan) | ({"image_ok": False} if rng.random() < 0.2 else {}))
        turns += [turn({"refine": text()}) for _ in range(int(rng.integers(0, 3)))]
    if "refine" in turns[-1] and rng.random() < 0.5:
        turns[-1] = {"refine": turns[-1]["refine"]}
    shown = {"image": "in.png", "instruction": text()} if rng.random() < 0.4 else {}
    return {"prompt": text(), **shown, "turns": turns}


def reckoned(record, stages):
    """(turn, row of the table) -> sum of weights, from the record alone."""
    found, turns = collections.Counter(), record["turns"]
    right = []
    for i, turn in enumerate(turns):
        corrected = i + 1 < len(turns) and "refine" in turns[i + 1]
        right.append("image" in turn and turn.get("image_ok", not corrected))

    def count(turn, stage, loss, weight):
        if stage in stages and weight:
            found[turn, f"{stage}_{loss}"] += weight

    def words(text):
        return len(TOKENIZER.encode(text))

    for i, turn in enumerate(turns):
        refines = "refine" in turn
        drawing, saying = ("refine", "refine") if refines else ("sketch", "plan")
        if refines:
            before = f"<refine>{turn['refine']}</refine>"
        elif "instruction" in turn:
            before = f"<ins>{turn['instruction']}</ins><des>{turn['description']}</des>"
        else:
            before = None
        if before is not None:
            # Of <|im_start|> w1 .. wn <|im_end|> all but the last predict the next one; the last one decides.
            count(i, saying, "text_cross_entropy", (words(before) + 1) * turn.get("before_weight", 1.0))
            count(i, saying, "decision_cross_entropy", 1)
        if i == 0:
            count(i, "plan", "decision_cross_entropy", 1)  # at the end of the prompt
        if "image" in turn:
            count(i, drawing, "decision_cross_entropy", 1)  # what follows the image
        if "inspect" in turn:
            count(
                i,
                "inspect",
                "text_cross_entropy",
                (words(turn["inspect"]) + 1) * turn.get("after_weight", 1.0),
            )
            count(i, "inspect", "decision_cross_entropy", 1)
        end = i
        while end + 1 < len(turns) and "refine" in turns[end + 1]:
            end += 1
        if right[i] or right[end]:  # its own image, or the last one of its step
            tokens = LAYOUT.copies * LAYOUT.latents
            count(i, drawing, "flow_mse", tokens * turn.get("image_weight", 1.0))
    return found


@pytest.mark.parametrize("seed", range(40))
def test_every_token_of_a_random_record_is_taught_what_the_record_says(seed):
    rng = np.random.default_rng(seed)
    stages = [stage for stage in Stage if seed % 4 == 0 or rng.random() < 0.8] or [Stage.SKETCH]
    records, parts = [random_record(rng) for _ in range(LAYOUT.trajectories)], []
    for record in records:
        read = trajectory_from_json(record)

        def pixels(image):
            return None if image is None else rng.integers(0, 256, (8, 8, 3), np.uint8)

        turns = tuple(Turn(pixels(turn.image), **turn.fields) for turn in read.turns)
        trajectory = Trajectory(
            read.prompt,
            turns,
            prompt_image=pixels(read.prompt_image),
            instruction=read.instruction,
            supervised=frozenset(stages),
        )
        parts.append(encode_trajectory(TOKENIZER, LAYOUT, trajectory))
    while sum(len(part["present"]) for part in parts) > LAYOUT.turns:
        parts.pop(), records.pop()
    row = Batch(**{name: value[None] for name, value in join_row(parts, LAYOUT).items()})
    start = 0
    for prompt, record in enumerate(records):
        found = collections.Counter()
        for token in anatomy(LAYOUT, row, TABLE, IDS, prompt).tokens:
            for name, weight in token.losses.items():
                found[max(token.turn - start, 0), name] += weight * token.count
        assert found == reckoned(record, [stage.value for stage in stages])
        start += len(record["turns"])
