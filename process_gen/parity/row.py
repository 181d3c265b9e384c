"""A packed row of the published program, as a row of this project: turns, their inputs, their labels.

The published row is a list of segments: texts, noised latents, clean latents, ViT tokens. Here the first
text of a sample is the prompt of a trajectory (if nothing in it is a target), and what follows fills draft
turns, of which each takes at most a text before the image, a flow target, clean latents and ViT tokens, in
this order.

S turn slots, R trajectories, T tokens of a text slot, N latent tokens, V values
of a latent token, P ViT tokens, L tokens of the published row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.checkpoints.errors import CheckpointMismatch
from process_gen.models import flow, vit
from process_gen.models.autoencoder import latent_shape, to_patches
from process_gen.models.config import ModelConfig
from process_gen.models.content import ChunkInputs, turn_inputs
from process_gen.parity.golden import Golden
from process_gen.trajectory.batch import PAD_ID, Batch
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Stage, stage_bits
from process_gen.trajectory.visibility import Chunk

ORDER = ("text", "noised", "clean", "vit")
"""The parts of a turn, each at most once."""


Turn = dict[str, range]
"""The tokens of the published row that a turn has of each kind."""


class Sample(NamedTuple):
    """One sample of the published row: the tokens of its prompt, and its turns."""

    prompt: range | None
    turns: tuple[Turn, ...]


class Row(NamedTuple):
    """A published row in the terms of this project.

    Attributes:
      layout: slots that fit it exactly.
      batch: one row, with blank images: `turns` hold their latents.
      turns: the content of its turns, [1, S, ...].
      flows: the flow targets, as `models.inputs.make_inputs` gives them.
      labels: as `controls.labels` gives them.
      targets: cross-entropy targets in the published order, each as a name in `labels` and an index there.
      places: for each published token its chunk (`prompt` or `turn`), slot, and index in packed order.
    """

    layout: Layout
    batch: Batch
    turns: ChunkInputs
    flows: dict[str, Any]
    labels: dict[str, np.ndarray]
    targets: tuple[tuple[str, tuple[int, ...]], ...]
    places: tuple[tuple[str, int, int], ...]


def layout_of(golden: Golden, config: ModelConfig, image: str, vit_image: str, **sizes: Any) -> Layout:
    """A layout for images as large as the golden ones; `sizes` are its other fields.

    `image` and `vit_image` are keys of images [..., 3, H, W] as the autoencoder and as the ViT see them;
    where one is not stored, `golden.json` says how large it would be.
    """
    size = golden.size(image, "image_hw")
    grid, values = latent_shape(config, size)
    rows, columns = golden.size(vit_image, "vit_hw") if config.vit else (0, 0)
    side = config.vit.patch if config.vit else 1
    if rows % side or columns % side:
        raise CheckpointMismatch(
            f"{golden.place}: the sides of {vit_image}, {rows} and {columns}, are no multiples of the ViT's "
            f"patches of {side}"
        )
    layout = Layout(
        image_size=size,
        latent_grid=grid,
        latent_values=values,
        vit_grid=(rows // side, columns // side),
        context="full",
        **sizes,
    )
    vit.check(config, layout)
    return layout


def latent_tokens(config: ModelConfig, latents: np.ndarray) -> np.ndarray:
    """Latents [..., C, h, w] to tokens [..., N, V]."""
    return to_patches(np.moveaxis(latents, -3, -1), config.latent_patch)


def samples_of(golden: Golden) -> list[Sample]:
    """Splits the published row into samples; CheckpointMismatch where its lengths contradict each other."""
    lengths, start, samples = golden["train_sample_lens"], 0, []
    vit_tokens = set(golden.optional("train_vit_indexes").tolist())
    targets = set(golden["train_ce_indexes"].tolist())
    for i, length in enumerate(lengths):
        pieces, at = [], start
        for split, mode in zip(golden[f"train_splits_{i}"], golden[f"train_modes_{i}"], strict=True):
            kind = ("text", "vit" if at + 1 in vit_tokens else "clean", "noised")[mode]
            pieces.append((kind, range(at, at + int(split))))
            at += int(split)
        if at != start + length:
            raise CheckpointMismatch(f"the segments of sample {i} have {at - start} tokens, it has {length}")
        samples.append(_sample(pieces, targets))
        start = at
    return samples


def _sample(pieces: list[tuple[str, range]], targets: set[int]) -> Sample:
    prompt = None
    if pieces and pieces[0][0] == "text" and not targets.intersection(pieces[0][1]):
        prompt = pieces.pop(0)[1]
    turns: list[Turn] = []
    for kind, tokens in pieces:
        newest = list(turns[-1])[-1] if turns else ORDER[-1]
        # In a visual state only the last closing token can have a label: after a labelled one a turn begins.
        cut = newest == "clean" and turns[-1]["clean"].stop - 1 in targets
        if cut or ORDER.index(kind) <= ORDER.index(newest):
            turns.append({})
        turns[-1][kind] = tokens
    return Sample(prompt, tuple(turns) or ({},))


def training_row(golden: Golden, config: ModelConfig, timestep_shift: float = 1.0) -> Row:
    """Converts the published row; CheckpointMismatch where something in it has no counterpart here."""
    samples = samples_of(golden)
    texts = dict(zip(golden["train_text_indexes"].tolist(), golden["train_text_ids"].tolist(), strict=True))
    turns = [turn for sample in samples for turn in sample.turns]
    layout = layout_of(
        golden,
        config,
        "train_vae_images",
        "train_vit_images",
        prompt=max([1, *(len(s.prompt) for s in samples if s.prompt)]),
        before=max([1, *(len(turn["text"]) for turn in turns if "text" in turn)]),
        after=0,
        turns=len(turns),
        trajectories=len(samples),
    )
    prompts = _texts([sample.prompt for sample in samples], texts, layout.prompt)
    before = _texts([turn.get("text") for turn in turns], texts, layout.before)
    batch = _batch(layout, prompts, before, samples)
    images, flows = _images(golden, config, layout, turns, timestep_shift)
    content = turn_inputs(
        batch.present,
        batch.before_tokens,
        batch.after_tokens,
        **images,
        exists={
            name: np.array([[kind in turn for turn in turns]])
            for name, kind in (("image", "clean"), ("image_vit", "vit"))
            if kind == "clean" or layout.vit_tokens
        },
    )
    labels, targets = _labels(golden, layout, turns)
    return Row(layout, batch, content, flows, labels, targets, _places(layout, samples, turns))


def _texts(pieces: Sequence[range | None], texts: dict[int, int], size: int) -> np.ndarray:
    """Text slots [len(pieces), size]."""
    slots = np.full((len(pieces), size), PAD_ID, np.int32)
    for slot, piece in zip(slots, pieces, strict=True):
        if piece is not None:
            slot[: len(piece)] = [texts[t] for t in piece]
    return slots


def _batch(layout: Layout, prompts: np.ndarray, before: np.ndarray, samples: Sequence[Sample]) -> Batch:
    counts = [len(sample.turns) for sample in samples]
    place = np.concatenate([np.arange(count) for count in counts])
    blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), Batch.spec(layout, 1))
    ones = np.ones((1, layout.turns), np.float32)
    return blank.replace(
        prompt_tokens=prompts[None],
        prompt_index=np.repeat(np.arange(len(samples), dtype=np.int32), counts)[None],
        present=ones > 0,
        is_first=(place == 0)[None],
        is_last=(place == np.repeat(counts, counts) - 1)[None],
        has_image=ones > 0,
        supervised=np.full_like(blank.supervised, stage_bits(Stage)),
        before_tokens=before[None],
        before_weight=ones,
        image_weight=ones,
        after_weight=ones,
    )


def _images(golden: Golden, config: ModelConfig, layout: Layout, turns: Sequence[Turn], shift: float):
    """Latents, noised latents, timesteps and ViT patches of every turn, and the flow targets."""
    shape = (len(turns), layout.latents, layout.latent_values)
    clean, noised, velocity = (np.zeros(shape, np.float32) for _ in range(3))
    t = np.zeros((len(turns), 1), np.float32)
    order = [(s, kind) for s, turn in enumerate(turns) for kind in ("noised", "clean") if kind in turn]
    latents, noise, times = clean[:0], clean[:0], t[:0, 0]
    if order:
        latents = latent_tokens(config, golden["train_latents"])
        noise = golden["train_noise"].reshape(latents.shape)
        with np.errstate(over="ignore"):
            times = 1 / (1 + np.exp(-golden["train_timestep_logits"].astype(np.float32)))
        times = flow.shift_time(times.reshape(latents.shape[:2])[:, 0], shift)
    if len(order) != len(latents):
        raise CheckpointMismatch(f"{len(order)} segments of latents, {len(latents)} images")
    for (s, kind), x, eps, time in zip(order, latents, noise, times, strict=True):
        if kind == "clean":
            clean[s] = x
        else:
            t[s], noised[s], velocity[s] = time, flow.add_noise(x, eps, time), eps - x
    inputs = dict(image=clean[None], noised=noised[None, :, None], t=t[None])
    if layout.vit_tokens:
        patches = np.zeros((len(turns), layout.vit_tokens, 3 * config.vit.patch**2), np.float32)
        if seen := [s for s, turn in enumerate(turns) if "vit" in turn]:
            images = np.moveaxis(golden["train_vit_images"], 1, -1)
            patches[seen] = vit.patches_of(config, layout, jnp.asarray(images))
        inputs["patches"] = patches[None]
    return inputs, dict(
        target=velocity[None, :, None],
        x_t=inputs["noised"],
        t=inputs["t"],
        has_target=np.array([["noised" in turn for turn in turns]]),
        previous=np.zeros_like(clean)[None],
        clean=clean[None],
        masked={},
    )


def _places(
    layout: Layout, samples: Sequence[Sample], turns: Sequence[Turn]
) -> tuple[tuple[str, int, int], ...]:
    """The `Row.places` of every token of the published row."""
    found: dict[int, tuple[str, int, int]] = {}
    for r, sample in enumerate(samples):
        for i, token in enumerate(sample.prompt or ()):
            found[token] = ("prompt", r, i)
    chunk = Chunk(layout.turn_segments)
    in_order = np.argsort(chunk.order).tolist()
    ends = np.cumsum([s.tokens for s in chunk.segments])
    packed = {s.name: in_order[end - s.tokens : end] for s, end in zip(chunk.segments, ends, strict=True)}
    names = {"text": "before", "noised": "noised_0", "clean": "image", "vit": "image_vit"}
    for s, turn in enumerate(turns):
        for kind, tokens in turn.items():
            places = packed[names[kind]]
            if kind != "text" and len(places) != len(tokens):
                raise CheckpointMismatch(
                    f"tokens {tokens.start} to {tokens.stop} are no image of {len(places) - 2} tokens"
                )
            found |= {token: ("turn", s, m) for token, m in zip(tokens, places, strict=False)}
    return tuple(found[token] for token in sorted(found))


def _labels(golden: Golden, layout: Layout, turns: Sequence[Turn]):
    """`Row.labels` and `Row.targets`."""
    shapes = {
        "prompt_end": (layout.trajectories,),
        "before": (layout.turns, layout.before),
        "image_end": (layout.turns,),
        "noised_end": (layout.turns, 1),
    }
    labels = {name: np.full((1, *shape), PAD_ID, np.int32) for name, shape in shapes.items()}
    where: dict[int, tuple[str, tuple[int, ...]]] = {}
    for s, turn in enumerate(turns):
        if "text" in turn:
            where |= {token: ("before", (0, s, i)) for i, token in enumerate(turn["text"])}
        if "noised" in turn:
            where[turn["noised"].stop - 1] = ("noised_end", (0, s, 0))
        if state := turn.get("vit", turn.get("clean")):
            where[state.stop - 1] = ("image_end", (0, s))
    targets = []
    for token, label in zip(
        golden["train_ce_indexes"].tolist(), golden["train_ce_labels"].tolist(), strict=True
    ):
        if token not in where:
            raise CheckpointMismatch(f"token {token} of the row has a label, and no loss reads it there")
        name, at = where[token]
        labels[name][at] = label
        targets.append((name, at))
    return labels, tuple(targets)
