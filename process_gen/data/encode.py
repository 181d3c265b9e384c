"""Trajectories to arrays: texts into their token slots, steps stacked.

A text slot holds `<|im_start|> ...ids... <|im_end|>` and then padding; a slot
of padding only is an absent text.
"""

from __future__ import annotations

from collections.abc import MutableMapping

import numpy as np

from process_gen.data.tokenizers import Tokenizer
from process_gen.trajectory import markup
from process_gen.trajectory.batch import PAD_ID
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Step, Trajectory

TEXT_SLOTS = ("prompt", "plan", "inspect", "refine")
"""Of every layout; one with room for input images may have `instruction` as well."""
STEP_SLOTS = TEXT_SLOTS[1:]


class BadTrajectory(ValueError):
    """A trajectory that cannot be used; the message names it."""


class SlotOverflow(BadTrajectory):
    """A text longer than its slot.

    Attributes:
      uid: the trajectory that it belongs to, "" for a prompt on its own.
      slot: `prompt`, `instruction`, `plan`, `inspect` or `refine`.
      needed: tokens of the text.
      fits: tokens that the slot has room for.
    """

    def __init__(self, uid: str, slot: str, needed: int, fits: int):
        self.uid, self.slot, self.needed, self.fits = uid, slot, needed, fits
        super().__init__(
            f"{_of(uid)}the {slot} text has {needed} tokens, {fits} fit "
            f"(layout.{slot} = {fits + 2}, two of which are brackets)"
        )


class TooManySteps(BadTrajectory):
    """A trajectory with more steps than a row has slots."""

    def __init__(self, uid: str, steps: int, slots: int):
        self.uid, self.steps, self.slots = uid, steps, slots
        super().__init__(f"{_of(uid)}{steps} steps, a row has {slots} step slots (layout.steps)")


def encode_prompt(tokenizer: Tokenizer, layout: Layout, text: str, uid: str = "") -> np.ndarray:
    """Returns the prompt slot of a text, [layout.prompt] int32.

    Raises:
      ValueError: the text is empty.
      SlotOverflow: it is too long; the error says how many tokens fit.
    """
    if not text.strip():
        raise BadTrajectory(f"{_of(uid)}the prompt is empty")
    return _encode_text(tokenizer, text, layout.prompt, "prompt", uid)


def encode_trajectory(tokenizer: Tokenizer, layout: Layout, trajectory: Trajectory) -> dict[str, np.ndarray]:
    """Returns the fields of a `Batch` for one trajectory, without row and batch axes.

    The fields of the prompt (`PROMPT_FIELDS`) have no further axis; every other
    one is [steps, ...], `prompt_index` and `reset` as if the trajectory stood at
    the start of a row.

    Raises:
      BadTrajectory: it does not fit the layout. The subclasses `SlotOverflow` and
        `TooManySteps` say by how much.
    """
    uid, steps = trajectory.uid, trajectory.steps
    if len(steps) > layout.steps:
        raise TooManySteps(uid, len(steps), layout.steps)
    first, last = np.zeros((2, len(steps)), np.bool_)
    first[0] = last[-1] = True
    return {
        **_encode_prompt(tokenizer, layout, trajectory),
        "prompt_index": np.zeros(len(steps), np.int32),
        "reset": first,
        "present": np.ones(len(steps), np.bool_),
        "last": last,
        **{f"{slot}_tokens": _encode_slots(tokenizer, layout, trajectory, slot) for slot in STEP_SLOTS},
        "sketch": np.stack([_checked_image(step.sketch, layout, uid) for step in steps]),
        "refined": np.stack([_refined_image(step, layout, uid) for step in steps]),
        "sketch_ok": np.array([step.sketch_ok for step in steps], np.bool_),
        "plan_ok": np.array([step.plan_ok for step in steps], np.bool_),
        **_latents(layout, trajectory),
    }


def _encode_prompt(tokenizer: Tokenizer, layout: Layout, trajectory: Trajectory) -> dict[str, np.ndarray]:
    """Returns the fields of the prompt: its text and, where the layout has room, what it holds besides."""
    uid, prompt = trajectory.uid, trajectory.prompt
    image, instruction = trajectory.prompt_image, trajectory.instruction
    if image is not None and not layout.prompt_image:
        raise BadTrajectory(f"{_of(uid)}its prompt holds an image, set layout.prompt_image=True")
    if instruction and not layout.instruction:
        raise BadTrajectory(f"{_of(uid)}its prompt holds a text after its image, set layout.instruction")
    if instruction.strip() and not prompt.strip():
        fields = {"prompt_tokens": np.full(layout.prompt, PAD_ID, np.int32)}
    else:
        fields = {"prompt_tokens": encode_prompt(tokenizer, layout, prompt, uid)}
    if layout.prompt_image:
        fields["has_prompt_image"] = np.array(image is not None)
        blank = np.zeros((*layout.image_size, 3), np.uint8)
        fields["prompt_image"] = blank if image is None else _checked_image(image, layout, uid)
    if layout.instruction:
        size = layout.instruction
        tokens = _encode_text(tokenizer, instruction, size, "instruction", uid) if instruction else PAD_ID
        fields["instruction_tokens"] = np.full(size, tokens, np.int32)
    return fields


def _latents(layout: Layout, trajectory: Trajectory) -> dict[str, np.ndarray]:
    """Returns the latents that were encoded ahead of time, as fields of a `Batch`."""
    names = ("sketch", "refined", "prompt") if layout.prompt_image else ("sketch", "refined")
    found = trajectory.latents
    return {} if found is None else {f"{name}_latents": found[name] for name in names}


def slot_texts(trajectory: Trajectory, slot: str) -> list[str | None]:
    """Returns the texts of one slot, marked up, None where absent: one of every step, or the prompt.

    Raises:
      ValueError: a text holds a special token.
    """
    steps = trajectory.steps
    if slot == "prompt":
        return [trajectory.prompt]
    if slot == "plan":
        return [None if step.plan is None else markup.write_plan(step.plan) for step in steps]
    if slot == "inspect":
        inspections = [step.inspect for step in steps]
        return [None if text is None else markup.check_plain(text, "an inspection") for text in inspections]
    return [None if step.refine is None else markup.write_refine(step.refine.instruction) for step in steps]


def count_tokens(tokenizer: Tokenizer, trajectory: Trajectory, longest: MutableMapping[str, int]) -> None:
    """Raises `longest`, tokens of the longest text of each slot with its two brackets, to a trajectory's."""
    for slot in TEXT_SLOTS:
        for text in slot_texts(trajectory, slot):
            if text is not None:
                longest[slot] = max(longest[slot], len(tokenizer.encode(text)) + 2)


def _encode_slots(tokenizer: Tokenizer, layout: Layout, trajectory: Trajectory, slot: str) -> np.ndarray:
    """Returns one text slot of every step, [steps, tokens] int32."""
    size = getattr(layout, slot)
    try:
        texts = slot_texts(trajectory, slot)
    except ValueError as error:
        raise BadTrajectory(f"{_of(trajectory.uid)}{error}") from None
    tokens = np.full((len(texts), size), PAD_ID, np.int32)
    for row, text in zip(tokens, texts, strict=True):
        if text is not None:
            row[:] = _encode_text(tokenizer, text, size, slot, trajectory.uid)
    return tokens


def _encode_text(tokenizer: Tokenizer, text: str, size: int, slot: str, uid: str) -> np.ndarray:
    ids = tokenizer.encode(text)
    if len(ids) > size - 2:
        raise SlotOverflow(uid, slot, len(ids), size - 2)
    tokens = np.full(size, PAD_ID, np.int32)
    tokens[: len(ids) + 2] = [tokenizer.im_start, *ids, tokenizer.im_end]
    return tokens


def _refined_image(step: Step, layout: Layout, uid: str) -> np.ndarray:
    if step.refine is None:
        return np.zeros((*layout.image_size, 3), np.uint8)
    return _checked_image(step.refine.image, layout, uid)


def _checked_image(image: np.ndarray, layout: Layout, uid: str) -> np.ndarray:
    expected = (*layout.image_size, 3)
    if image.shape != expected or image.dtype != np.uint8:
        raise BadTrajectory(
            f"{_of(uid)}an image is {image.dtype}{list(image.shape)}, the layout has uint8{list(expected)}"
        )
    return image


def _of(uid: str) -> str:
    return f"trajectory {uid!r}: " if uid else ""
