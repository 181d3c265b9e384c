"""Encodes trajectories as arrays: texts in token slots, turns stacked; splits those longer than a row.

A text slot holds `<|im_start|> ...ids... <|im_end|>` and then padding; a slot
of padding only is an absent text.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from process_gen.data.errors import BadTrajectory, SlotOverflow, TooLong
from process_gen.data.tokenizers import Tokenizer
from process_gen.trajectory import markup
from process_gen.trajectory.batch import EXTRA, PAD_ID
from process_gen.trajectory.layout import FIELD_KINDS, Layout
from process_gen.trajectory.stages import Trajectory, Turn, stage_bits, targets_of, turn_fields

TEXT_SLOTS = ("prompt", *(field.name for field in turn_fields("text")))
"""Text slots of every layout; `instruction`, after a prompt's image, is optional."""


def encode_parts(
    tokenizer: Tokenizer, layout: Layout, split: bool, trajectory: Trajectory
) -> list[dict[str, np.ndarray]]:
    """Returns the arrays of a trajectory, or with `split` of its parts; raises as `encode_trajectory`."""
    parts = split_trajectory(trajectory, layout) if split else [trajectory]
    return [encode_trajectory(tokenizer, layout, part) for part in parts]


def split_trajectory(trajectory: Trajectory, layout: Layout) -> list[Trajectory]:
    """Splits a trajectory into parts that fit a row; returns it alone where it fits or cannot be split.

    Splitting needs the `layout.context` `step` or `last`, where a step sees no step before the previous one.
    Every part but the first repeats the step before it as context without losses (`context_turns`). Only the
    last part has `ends` set, so the model does not learn to stop at a cut.
    """
    if len(trajectory.turns) <= layout.turns or layout.context == "full":
        return [trajectory]
    steps = [len(step.turns) for step in trajectory.steps]
    ends = list(itertools.accumulate(steps))
    parts, step = [], 0  # step: the first one of the next part that is not context
    while step < len(steps):
        context_turns = steps[step - 1] if step else 0
        start = ends[step - 1] - context_turns if step else 0
        next_step = bisect.bisect_right(ends, start + layout.turns)
        if next_step == step:  # a step and the one before it do not fit one row
            return [trajectory]
        stop, latents = ends[next_step - 1], trajectory.latents
        parts.append(
            dataclasses.replace(
                trajectory,
                turns=trajectory.turns[start:stop],
                context_turns=context_turns,
                latents=latents and {**latents, "image": latents["image"][start:stop]},
                ends=stop == len(trajectory.turns),
            )
        )
        step = next_step
    return parts


def encode_trajectory(tokenizer: Tokenizer, layout: Layout, trajectory: Trajectory) -> dict[str, np.ndarray]:
    """Returns the fields of a `Batch` for one trajectory, without row and batch axes.

    The fields of the prompt (`PROMPT_FIELDS`) have no further axis; every other
    one is [turns, ...], as if the trajectory stood at the start of a row.

    Raises:
      BadTrajectory: it does not fit the layout. The subclasses `SlotOverflow` and
        `TooLong` say by how much.
    """
    try:
        return _encode(tokenizer, layout, trajectory)
    except (BadTrajectory, markup.BadText) as error:
        bad = error if isinstance(error, BadTrajectory) else BadTrajectory(str(error))
        if place := trajectory.place or (trajectory.uid and f"trajectory {trajectory.uid!r}"):
            bad.args = (f"{place}: {error}",)
        raise bad from None


def _encode(tokenizer: Tokenizer, layout: Layout, trajectory: Trajectory) -> dict[str, np.ndarray]:
    turns, corrections = trajectory.turns, trajectory.corrections
    if len(turns) > layout.turns:
        raise TooLong(len(turns), layout.turns)
    if corrections > layout.corrections:
        raise BadTrajectory(f"a step is corrected {corrections} times, set layout.corrections={corrections}")
    is_first, is_last = np.zeros((2, len(turns)), np.bool_)
    is_first[0], is_last[-1] = True, trajectory.ends
    is_context = np.arange(len(turns)) < trajectory.context_turns
    turns_ahead = [target - i if target >= 0 else -1 for i, target in enumerate(targets_of(turns))]
    fields = _encode_prompt(tokenizer, layout, trajectory) | {
        "prompt_index": np.zeros(len(turns), np.int32),
        "present": np.ones(len(turns), np.bool_),
        "is_first": is_first,
        "is_last": is_last,
        "refines": np.array([turn.refines for turn in turns], np.bool_),
        "has_image": np.array([turn.image is not None for turn in turns], np.bool_),
        "source": np.full(len(turns), trajectory.source, np.int32),
        "supervised": np.where(is_context, 0, stage_bits(trajectory.supervised)).astype(np.int32),
        "image": np.stack([_checked_image(turn.image, layout) for turn in turns]),
        "target": np.array(turns_ahead, np.int32),
    }
    for field in turn_fields("text"):
        size, name = getattr(layout, field.name), field.name
        texts = _slot_texts(turns, name)
        if layout.leaves_out(name):
            texts = [None] * len(turns)
        fields[f"{name}_tokens"] = np.stack([_encode_text(tokenizer, text, size, name) for text in texts])
    for field in turn_fields("weight"):
        fields[field.name] = np.array([getattr(turn, field.name) for turn in turns], np.float32)
    for name, kind in layout.fields:
        fields[f"{EXTRA}{name}"] = np.stack(
            [_user_field(turn.extra.get(name), name, kind, layout) for turn in turns]
        )
    if trajectory.latents is not None:  # encoded ahead of time
        names = ("image", "prompt") if layout.prompt_image else ("image",)
        fields |= {f"{name}_latents": trajectory.latents[name] for name in names}
    return fields


def _encode_prompt(tokenizer: Tokenizer, layout: Layout, trajectory: Trajectory) -> dict[str, np.ndarray]:
    """Returns the fields of the prompt: its text, and the input image and second text of the layout."""
    prompt, image, instruction = trajectory.prompt, trajectory.prompt_image, trajectory.instruction
    if image is not None and not layout.prompt_image:
        raise BadTrajectory("its prompt holds an image, set layout.prompt_image=True")
    if instruction and not layout.instruction:
        raise BadTrajectory("its prompt holds a text after its image, set layout.instruction")
    if not prompt.strip() and not instruction.strip():
        raise BadTrajectory("the prompt is empty")
    text = markup.check_plain(prompt, "the prompt") if prompt.strip() else None
    fields = {"prompt_tokens": _encode_text(tokenizer, text, layout.prompt, "prompt")}
    if layout.prompt_image:
        fields["has_prompt_image"] = np.array(image is not None)
        fields["prompt_image"] = _checked_image(image, layout)
    if layout.instruction:
        text = markup.check_plain(instruction, "the text after the prompt's image") or None
        fields["instruction_tokens"] = _encode_text(tokenizer, text, layout.instruction, "instruction")
    return fields


def _slot_texts(turns: Sequence[Turn], slot: str) -> list[str | None]:
    """Returns the texts of a slot with their markup; raises BadText for special tokens that have no place."""
    if slot == "after":
        texts = [turn.after for turn in turns]
        return [None if text is None else markup.check_plain(text, "an inspection") for text in texts]
    for turn in turns:
        if isinstance(parsed := turn.parsed, markup.Malformed):
            kind = "refine instruction" if turn.refines else "plan"
            raise markup.BadText(f"the text of a {kind} is malformed: {parsed.reason}")
        if turn.before is not None:
            markup.check_characters(turn.before, "a text before an image")
    return [turn.before for turn in turns]


def text_ids(tokenizer: Tokenizer, trajectory: Trajectory) -> Iterator[tuple[str, list[int]]]:
    """Yields the slot of each text of a trajectory, and its ids, without those of the two brackets."""
    texts = [("prompt", trajectory.prompt or None), ("instruction", trajectory.instruction or None)]
    for turn in trajectory.turns:
        texts += [("before", turn.before), ("after", turn.after)]
    for slot, text in texts:
        if text is not None:
            yield slot, tokenizer.encode(text)


def _encode_text(tokenizer: Tokenizer, text: str | None, size: int, slot: str) -> np.ndarray:
    """Returns a slot of `size` tokens, all padding where the text is None."""
    tokens = np.full(size, PAD_ID, np.int32)
    if text is not None:
        ids = tokenizer.encode(text)
        if len(ids) > size - 2:
            raise SlotOverflow(slot, len(ids), size - 2, text)
        tokens[: len(ids) + 2] = [tokenizer.im_start, *ids, tokenizer.im_end]
    return tokens


def _user_field(value: Any, name: str, kind: str, layout: Layout) -> np.ndarray:
    shape, dtype = layout.field_shape(kind), FIELD_KINDS[kind]
    if value is None:
        return np.zeros(shape, dtype)
    if np.shape(value) != shape:
        raise BadTrajectory(f"field {name} has shape {list(np.shape(value))}, a {kind} has {list(shape)}")
    return np.asarray(value, dtype)


def _checked_image(image: np.ndarray | None, layout: Layout) -> np.ndarray:
    expected = (*layout.image_size, 3)
    if image is None:
        return np.zeros(expected, np.uint8)
    if image.shape != expected or image.dtype != np.uint8:
        raise BadTrajectory(
            f"an image is {image.dtype}{list(image.shape)}, the layout has uint8{list(expected)}"
        )
    return image
