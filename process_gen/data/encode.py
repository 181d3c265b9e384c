"""Trajectories to arrays: texts into their token slots, turns stacked.

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
from process_gen.trajectory.stages import Trajectory, targets_of, turn_fields

TEXT_SLOTS = ("prompt", *(field.name for field in turn_fields("text")))
"""Of every layout; one with room for input images may have `instruction` as well."""


_SLOT_TEXTS = {
    "prompt": "prompt",
    "instruction": "text after the prompt's image",
    "before": "text before an image (a plan or a refine instruction)",
    "after": "inspection",
}


class BadTrajectory(ValueError):
    """A trajectory that cannot be used; the message names it."""


class SlotOverflow(BadTrajectory):
    """A text longer than its slot.

    Attributes:
      uid: the trajectory that it belongs to, "" for a prompt on its own.
      slot: `prompt`, `instruction`, `before` or `after`.
      needed: tokens of the text.
      fits: tokens that the slot has room for.
    """

    def __init__(self, uid: str, slot: str, needed: int, fits: int):
        self.uid, self.slot, self.needed, self.fits = uid, slot, needed, fits
        super().__init__(
            f"{_of(uid)}the {_SLOT_TEXTS[slot]} has {needed} tokens, {fits} fit "
            f"(layout.{slot} = {fits + 2}, two of which are brackets)"
        )


class TooLong(BadTrajectory):
    """A trajectory with more turns than a row has slots.

    Attributes:
      uid: of the trajectory.
      turns: how many it has.
      slots: turn slots of a row.
    """

    def __init__(self, uid: str, turns: int, slots: int):
        self.uid, self.turns, self.slots = uid, turns, slots
        super().__init__(f"{_of(uid)}{turns} turns, a row has {slots} turn slots (layout.turns)")


def encode_prompt(tokenizer: Tokenizer, layout: Layout, text: str, uid: str = "") -> np.ndarray:
    """Returns the prompt slot of a text, [layout.prompt] int32.

    Raises:
      BadTrajectory: the text is empty, or holds a special token or half of a character.
      SlotOverflow: it is too long; the error says how many tokens fit.
    """
    if not text.strip():
        raise BadTrajectory(f"{_of(uid)}the prompt is empty")
    return _encode_text(tokenizer, _plain(text, "the prompt", uid), layout.prompt, "prompt", uid)


def encode_trajectory(tokenizer: Tokenizer, layout: Layout, trajectory: Trajectory) -> dict[str, np.ndarray]:
    """Returns the fields of a `Batch` for one trajectory, without row and batch axes.

    The fields of the prompt (`PROMPT_FIELDS`) have no further axis; every other
    one is [turns, ...], as if the trajectory stood at the start of a row.

    Raises:
      BadTrajectory: it does not fit the layout. The subclasses `SlotOverflow` and
        `TooLong` say by how much.
    """
    uid, turns = trajectory.uid, trajectory.turns
    if len(turns) > layout.turns:
        raise TooLong(uid, len(turns), layout.turns)
    if trajectory.corrections > layout.corrections:
        raise BadTrajectory(
            f"{_of(uid)}a step is corrected {trajectory.corrections} times, set "
            f"layout.corrections={trajectory.corrections}"
        )
    is_first, is_last = np.zeros((2, len(turns)), np.bool_)
    is_first[0] = is_last[-1] = True
    targets = [target - i if target >= 0 else -1 for i, target in enumerate(targets_of(turns))]
    return {
        **_encode_prompt(tokenizer, layout, trajectory),
        "prompt_index": np.zeros(len(turns), np.int32),
        "present": np.ones(len(turns), np.bool_),
        "is_first": is_first,
        "is_last": is_last,
        "refines": np.array([turn.refines for turn in turns], np.bool_),
        **{
            f"{f.name}_tokens": _encode_slots(tokenizer, layout, trajectory, f.name)
            for f in turn_fields("text")
        },
        "image": np.stack([_checked_image(turn.image, layout, uid) for turn in turns]),
        "target": np.array(targets, np.int32),
        **{
            f.name: np.array([getattr(turn, f.name) for turn in turns], np.float32)
            for f in turn_fields("weight")
        },
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
        size, text = layout.instruction, _plain(instruction, "the text after the prompt's image", uid)
        tokens = _encode_text(tokenizer, text, size, "instruction", uid) if text else PAD_ID
        fields["instruction_tokens"] = np.full(size, tokens, np.int32)
    return fields


def _latents(layout: Layout, trajectory: Trajectory) -> dict[str, np.ndarray]:
    """Returns the latents that were encoded ahead of time, as fields of a `Batch`."""
    names = ("image", "prompt") if layout.prompt_image else ("image",)
    found = trajectory.latents
    return {} if found is None else {f"{name}_latents": found[name] for name in names}


def slot_texts(trajectory: Trajectory, slot: str) -> list[str | None]:
    """Returns the texts of one slot, marked up, None where absent: one of every turn, or the prompt.

    Raises:
      ValueError: a text has special tokens where they do not belong, or half of a character.
    """
    if slot == "prompt":
        return [trajectory.prompt]
    if slot == "after":
        return [
            None if turn.after is None else markup.check_plain(turn.after, "an inspection")
            for turn in trajectory.turns
        ]
    for turn in trajectory.turns:
        if isinstance(found := turn.instruction if turn.refines else turn.plan, markup.Malformed):
            what = "refine instruction" if turn.refines else "plan"
            raise ValueError(f"the text of a {what} is malformed: {found.reason}")
        if turn.before is not None:
            markup.check_characters(turn.before, "a text before an image")
    return [turn.before for turn in trajectory.turns]


def count_tokens(tokenizer: Tokenizer, trajectory: Trajectory, longest: MutableMapping[str, int]) -> None:
    """Raises `longest`, tokens of the longest text of each slot with its two brackets, to a trajectory's."""
    for slot in TEXT_SLOTS:
        for text in slot_texts(trajectory, slot):
            if text is not None:
                longest[slot] = max(longest[slot], len(tokenizer.encode(text)) + 2)


def _encode_slots(tokenizer: Tokenizer, layout: Layout, trajectory: Trajectory, slot: str) -> np.ndarray:
    """Returns one text slot of every turn, [turns, tokens] int32."""
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


def _plain(text: str, what: str, uid: str) -> str:
    try:
        return markup.check_plain(text, what)
    except ValueError as error:
        raise BadTrajectory(f"{_of(uid)}{error}") from None


def _encode_text(tokenizer: Tokenizer, text: str, size: int, slot: str, uid: str) -> np.ndarray:
    ids = tokenizer.encode(text)
    if len(ids) > size - 2:
        raise SlotOverflow(uid, slot, len(ids), size - 2)
    tokens = np.full(size, PAD_ID, np.int32)
    tokens[: len(ids) + 2] = [tokenizer.im_start, *ids, tokenizer.im_end]
    return tokens


def _checked_image(image: np.ndarray, layout: Layout, uid: str) -> np.ndarray:
    expected = (*layout.image_size, 3)
    if image.shape != expected or image.dtype != np.uint8:
        raise BadTrajectory(
            f"{_of(uid)}an image is {image.dtype}{list(image.shape)}, the layout has uint8{list(expected)}"
        )
    return image


def _of(uid: str) -> str:
    return f"trajectory {uid!r}: " if uid else ""
