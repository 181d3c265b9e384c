"""Conditioning dropout, against a plain port of how the published program packs a sample.

A trajectory is a list of pieces in order. Text counts positions up, and one that is dropped
takes none. A clean image or its ViT tokens share one position and move on by 1, dropped or
not. A noised image has the position of what follows. All later tokens of the trajectory see
texts and clean images, nobody else sees a noised one, and what is dropped is not there.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.models.config import UnrollOptions, model_config
from process_gen.models.content import ChunkInputs
from process_gen.models.inputs import Inputs, make_inputs
from process_gen.models.unified import UnifiedModel
from process_gen.models.unroll import run_turns
from process_gen.trajectory.batch import PAD_ID, Batch
from process_gen.trajectory.controls import ControlIds
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Stage, stage_bits
from process_gen.trajectory.visibility import Chunk

LAYOUT = Layout(
    image_size=(16, 16),
    latent_grid=(2, 2),
    vit_grid=(1, 2),
    prompt=6,
    before=5,
    after=4,
    prompt_image=True,
    instruction=4,
    turns=7,
    trajectories=3,
    copies=2,
)
IDS = ControlIds(
    end_of_text=2, im_start=3, im_end=4, vision_start=5, vision_end=6, ins=7, refine=8, des=9, des_end=10
)
MODEL = UnifiedModel(model_config("debug"), LAYOUT, IDS)
CHUNKS = {"prompt": Chunk(LAYOUT.prompt_segments), "turn": Chunk(LAYOUT.turn_segments)}

PROMPTS = [
    dict(prompt=5, image=True, instruction=4),
    dict(prompt=6),
    dict(prompt=4, image=True, instruction=3),
]
TURNS = [
    dict(of=0, before=5, after=3),  # a draft that is corrected twice
    dict(of=0, before=4, after=4, refines=True),
    dict(of=0, before=3, refines=True),
    dict(of=0, before=4),  # a draft without an inspection
    dict(of=1),  # neither plan nor inspection
    dict(of=1, before=5, after=2),
    dict(of=2, after=3),
]
DROPS = {
    "nothing": {},
    "vit": dict(drop_vit=1.0),
    "latents": dict(drop_latents=1.0),
    "both": dict(drop_vit=1.0, drop_latents=1.0),
    "images": dict(drop_images=1.0),
    "text": dict(drop_text=1.0),
}
IMAGES = {"vit": ("vit",), "latents": ("latents",), "both": ("vit", "latents"), "images": ("vit", "latents")}
"""What of an image each of these leaves out."""

# ------------------------------------------------------------------ the port


@dataclasses.dataclass(frozen=True)
class Element:
    """A piece of a sample: `text`, `noised`, `latents` or `vit`; its place is chunk, slot and segment."""

    kind: str
    place: tuple[str, int, str]
    tokens: int
    dropped: bool = False


def elements_of(trajectory: int, drop: str) -> list[Element]:
    """The pieces of a trajectory, in order."""
    prompt = PROMPTS[trajectory]
    turns = [(s, turn) for s, turn in enumerate(TURNS) if turn["of"] == trajectory]
    lost = IMAGES.get(drop, ())
    # Before the first image the newest text is its plan, else the instruction, else the prompt.
    bare = drop == "text" and "before" not in turns[0][1]

    def image(chunk: str, slot: int, name: str) -> list[Element]:
        return [
            Element("latents", (chunk, slot, name), 2 + LAYOUT.latents, "latents" in lost),
            Element("vit", (chunk, slot, f"{name}_vit"), 2 + LAYOUT.vit_tokens, "vit" in lost),
        ]

    def text(chunk: str, slot: int, name: str, tokens: int, dropped: bool = False) -> Element:
        return Element("text", (chunk, slot, name), tokens, dropped)

    found = [text("prompt", trajectory, "prompt", prompt["prompt"], bare and "instruction" not in prompt)]
    if "image" in prompt:
        found += image("prompt", trajectory, "prompt_image")
        found.append(text("prompt", trajectory, "instruction", prompt["instruction"], bare))
    for s, turn in turns:
        if "before" in turn:
            found.append(text("turn", s, "before", turn["before"], drop == "text"))
        found += [
            Element("noised", ("turn", s, f"noised_{i}"), 2 + LAYOUT.latents) for i in range(LAYOUT.copies)
        ]
        found += image("turn", s, "image")
        if "after" in turn:
            found.append(text("turn", s, "after", turn["after"]))
    return found


def packed(elements: list[Element]) -> dict[tuple[str, int, str], np.ndarray]:
    """The positions of the tokens that are there, by place."""
    found, position = {}, 0
    for element in elements:
        if element.kind == "text":
            if not element.dropped:
                found[element.place] = position + np.arange(element.tokens)
                position += element.tokens
            continue
        if not element.dropped:
            found[element.place] = np.full(element.tokens, position)
        if element.kind != "noised":
            position += 1
    return found


def seen_by(elements: list[Element], place: tuple[str, int, str]) -> set[tuple[str, int, str]]:
    """The places that change when the content of one does."""
    at = next(i for i, element in enumerate(elements) if element.place == place)
    if elements[at].dropped:
        return set()
    later = elements[at + 1 :] if elements[at].kind != "noised" else []
    return {place} | {element.place for element in later if not element.dropped}


# ------------------------------------------------------------- the same with the model


def text(rng, tokens: int, slot: int) -> np.ndarray:
    return np.array([*rng.integers(9, 300, tokens), *[PAD_ID] * (slot - tokens)], np.int32)


@functools.cache
def batch() -> Batch:
    rng, size = np.random.default_rng(0), (*LAYOUT.image_size, 3)
    first = [i == 0 or TURNS[i]["of"] != TURNS[i - 1]["of"] for i in range(LAYOUT.turns)]
    ones = np.ones((1, LAYOUT.turns), np.float32)

    def turns(name: str, slot: int) -> np.ndarray:
        return np.stack([text(rng, turn.get(name, 0), slot) for turn in TURNS])[None]

    def prompts(name: str, slot: int) -> np.ndarray:
        return np.stack([text(rng, prompt.get(name, 0), slot) for prompt in PROMPTS])[None]

    return Batch(
        prompt_tokens=prompts("prompt", LAYOUT.prompt),
        prompt_index=np.array([[turn["of"] for turn in TURNS]], np.int32),
        present=ones > 0,
        is_first=np.array([first]),
        is_last=np.array([[*first[1:], True]]),
        refines=np.array([[turn.get("refines", False) for turn in TURNS]]),
        has_image=ones > 0,
        source=np.zeros((1, LAYOUT.turns), np.int32),
        supervised=np.full((1, LAYOUT.turns), stage_bits(Stage), np.int32),
        before_tokens=turns("before", LAYOUT.before),
        after_tokens=turns("after", LAYOUT.after),
        image=rng.integers(0, 256, (1, LAYOUT.turns, *size), np.uint8),
        target=np.zeros((1, LAYOUT.turns), np.int32),
        before_weight=ones,
        image_weight=ones,
        after_weight=ones,
        prompt_image=rng.integers(0, 256, (1, LAYOUT.trajectories, *size), np.uint8),
        has_prompt_image=np.array([["image" in prompt for prompt in PROMPTS]]),
        instruction_tokens=prompts("instruction", LAYOUT.instruction),
    )


@functools.cache
def params():
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), Batch.spec(LAYOUT, 1))
    return jax.jit(MODEL.init)(jax.random.key(1), blank)["params"]


@functools.cache
def inputs_of(drop: str) -> Inputs:
    options = UnrollOptions(**dict(drop_text=0.0, drop_images=0.0) | DROPS[drop])
    return jax.jit(lambda batch: make_inputs(MODEL, batch, jax.random.key(2), options))(batch())


@jax.jit
def rows(params, prompts, turns):
    """Every token of the rows, traced, and the outputs of the turns."""
    fixed = (batch().prompt_index, batch().is_first, batch().refines)
    given = (prompts, turns, *(jnp.repeat(x, len(turns.present), 0) for x in fixed))
    (_, outputs), seen = MODEL.apply({"params": params}, *given, method="forward_rows", mutable=["trace"])
    return outputs, {name: found for name, (found,) in seen["trace"].items()}


def by_place(traced, what: str, count: int) -> dict[tuple[str, int, str], np.ndarray]:
    """What was traced, [rows, tokens, ...], of every segment of every slot."""
    found = {}
    for name, chunk in CHUNKS.items():
        parts = [np.asarray(traced[name][what][stream]) for stream in ("und", "gen")]
        whole = np.concatenate(parts, axis=1)
        whole = whole.reshape(count, -1, *whole.shape[1:])
        for slot in range(whole.shape[1]):
            for s in chunk.segments:
                found[name, slot, s.name] = np.concatenate(
                    [whole[:, slot, piece] for piece in chunk.packed(s.name)], axis=1
                )
    return found


def with_changes(inputs: Inputs, places) -> tuple[ChunkInputs, ChunkInputs]:
    """One row for each place, in which its content is another; the first row is as it was."""
    chunks = {"prompt": inputs.prompts, "turn": inputs.turns}
    chunks = {
        name: jax.tree.map(lambda x: np.repeat(np.asarray(x), len(places) + 1, 0), x)
        for name, x in chunks.items()
    }
    rng = np.random.default_rng(3)
    for row, (chunk, slot, segment) in enumerate(places, start=1):
        content, at = chunks[chunk], (row, slot)
        array = (content.texts | content.latents | content.vit)[segment]
        if array.dtype == np.int32:
            array[at] = np.where(array[at] == PAD_ID, PAD_ID, 9 + (array[at] + 50) % 300)
        else:
            array[at] += rng.normal(size=array[at].shape)
    return chunks["prompt"], chunks["turn"]


@pytest.mark.parametrize("drop", DROPS)
def test_positions_are_those_of_the_published_packing(drop):
    inputs = inputs_of(drop)
    _, traced = rows(params(), inputs.prompts, inputs.turns)
    positions, expected = by_place(traced, "positions", 1), {}
    for trajectory in range(LAYOUT.trajectories):
        expected |= packed(elements_of(trajectory, drop))
    for place, want in expected.items():
        np.testing.assert_array_equal(positions[place][0, : len(want)], want, err_msg=str(place))


def test_a_dropped_image_takes_its_positions_and_a_dropped_text_does_not():
    """The port itself: what the second draft's plan begins with, by what is dropped."""
    starts = {drop: packed(elements_of(1, drop)).get(("turn", 5, "before")) for drop in DROPS}
    assert starts.pop("text") is None
    assert {int(start[0]) for start in starts.values()} == {6 + 2}
    image = packed(elements_of(1, "text"))["turn", 4, "image"]
    assert (image == 0).all(), "the prompt was the newest text"


@pytest.mark.slow  # 44 rows, of which each has one place changed
@pytest.mark.parametrize("drop", DROPS)
def test_what_is_dropped_is_seen_by_nobody_and_all_else_by_whom_it_should(drop):
    inputs = inputs_of(drop)
    trajectories = [elements_of(trajectory, drop) for trajectory in range(LAYOUT.trajectories)]
    places = [element.place for elements in trajectories for element in elements]
    there = {element.place for elements in trajectories for element in elements if not element.dropped}
    prompts, turns = with_changes(inputs, places)
    _, traced = rows(params(), prompts, turns)
    hidden = by_place(traced, "hidden", len(places) + 1)
    tokens = {element.place: element.tokens for elements in trajectories for element in elements}
    for row, place in enumerate(places, start=1):
        wanted = next(
            seen_by(elements, place) for elements in trajectories if place in {e.place for e in elements}
        )
        for other in there:
            one, two = hidden[other][0, : tokens[other]], hidden[other][row, : tokens[other]]
            moved = np.abs(one - two).max(-1) > 1e-5
            assert moved.all() if other in wanted else not moved.any(), (place, other)


@pytest.mark.parametrize("drop", DROPS)
def test_an_image_closes_where_its_last_tokens_do(drop):
    inputs = inputs_of(drop)
    outputs, traced = rows(params(), inputs.prompts, inputs.turns)
    hidden = by_place(traced, "hidden", 1)
    name = {"vit": "image", "both": None, "images": None}.get(drop, "image_vit")
    for s in range(LAYOUT.turns if name else 0):
        np.testing.assert_array_equal(outputs["image_end"][0, s], hidden["turn", s, name][0, 1])
    assert np.asarray(inputs.flows["masked"]["image_end"]).all() == (name is None)
    assert np.asarray(inputs.flows["masked"]["before"]).all() == (drop == "text")


@functools.cache
def both_orders():
    return {order: jax.jit(functools.partial(run_turns, MODEL, order=order)) for order in ("layers", "scan")}


@pytest.mark.parametrize("drop", ["images", "text"])
def test_both_orders_of_the_loops_drop_the_same(drop):
    inputs = inputs_of(drop)
    found = {
        order: run(params(), batch(), inputs.prompts, inputs.turns) for order, run in both_orders().items()
    }
    (ends, layers), (others, scan) = found["layers"], found["scan"]
    seen = {name: np.ones(x.shape[:-1], bool) for name, x in layers.items()}
    seen |= {name: inputs.turns.texts[name] != PAD_ID for name in ("before", "after")}
    seen["image_end"] &= drop != "images"
    for name, there in seen.items():
        one, two = (np.asarray(x[name])[np.asarray(there)] for x in (layers, scan))
        np.testing.assert_allclose(one, two, atol=1e-5, err_msg=name)
    kept = ~np.asarray(inputs.flows["masked"]["prompt_end"])
    np.testing.assert_allclose(np.asarray(ends)[kept], np.asarray(others)[kept], atol=1e-5)
