"""Encodes prompts and given turns into the token slots and images that the model reads."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from process_gen.models.unified import UnifiedModel
from process_gen.sampling.config import PromptError
from process_gen.trajectory import markup
from process_gen.trajectory.batch import PAD_ID
from process_gen.trajectory.stages import Turn


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """What a trajectory is to draw; the attributes are those of `Trajectory`."""

    text: str
    image: np.ndarray | None = None
    instruction: str = ""

    @property
    def hash(self) -> int:
        """Of its texts, in [0, 2^32): part of the trajectory's random key."""
        return zlib.crc32((self.text + self.instruction).encode())


def make_prompt(model: UnifiedModel, text: str, image: np.ndarray | None) -> Prompt:
    """A prompt of one text, which comes after the image if there is one and the layout has a slot there."""
    if image is not None and model.layout.instruction:
        return Prompt("", image, text)
    return Prompt(text, image)


def idle_slots(model: UnifiedModel) -> dict[str, np.ndarray]:
    """Blank prompt slots, for a row without a prompt: `text`, and what else the layout has room for."""
    layout = model.layout
    slots = {"text": np.full(layout.prompt, PAD_ID, np.int32)}
    if layout.prompt_image:
        slots |= {"images": np.zeros((*layout.image_size, 3), np.uint8), "has_image": np.asarray(False)}
    if layout.instruction:
        slots["instruction"] = np.full(layout.instruction, PAD_ID, np.int32)
    return slots


def encode_prompt(model: UnifiedModel, tokenizer: Any, prompt: Prompt) -> dict[str, np.ndarray]:
    """The slots of a prompt, named as in `idle_slots`.

    Raises:
      PromptError: a text is empty, holds a forbidden token, or is too long (the
        message says how many tokens fit), or the image does not fit the layout.
    """
    layout, image, slots = model.layout, prompt.image, idle_slots(model)
    if prompt.instruction and image is None:
        raise PromptError("an instruction stands after an input image, and there is none")
    if prompt.instruction and not layout.instruction:
        raise PromptError("the model has no room for a text after an input image (layout.instruction is 0)")
    if prompt.text or not prompt.instruction:
        slots["text"] = encode_text(model, tokenizer, prompt.text, "prompt")
    if prompt.instruction:
        slots["instruction"] = encode_text(model, tokenizer, prompt.instruction, "instruction")
    if image is None:
        return slots
    if not layout.prompt_image:
        raise PromptError("the model has no room for an input image (layout.prompt_image is False)")
    return slots | {"images": _fitting(model, image, "an input image"), "has_image": np.asarray(True)}


def check_prompts(model: UnifiedModel, tokenizer: Any, prompts: Iterable[str]) -> None:
    """Checks prompts without images before anything is drawn; raises PromptError as `encode_prompt` does."""
    for text in prompts:
        encode_prompt(model, tokenizer, make_prompt(model, text, None))


def encode_turn(model: UnifiedModel, tokenizer: Any, turn: Turn) -> dict[str, np.ndarray | None]:
    """The slots of a given turn: `before` and `after`, None where absent or left out, and `image`.

    Raises:
      PromptError: a text or the image does not fit the layout, or is not what such a turn holds.
    """
    opening = markup.REFINE if turn.refines else markup.INS
    if turn.before is not None and not turn.before.startswith(opening):
        kind = "refine" if turn.refines else "draft"
        raise PromptError(f"the text before the image of a {kind} turn starts with {opening}")
    if turn.refines and turn.before is None:
        raise PromptError(f"a refine turn has a text before its image, {markup.REFINE}..{markup.REFINE_END}")
    slots: dict[str, np.ndarray | None] = {"image": _fitting(model, turn.image, "the image of a given turn")}
    for name, text in (("before", turn.before), ("after", turn.after)):
        absent = text is None or model.layout.leaves_out(name)
        slots[name] = None if absent else encode_text(model, tokenizer, text, name)
    return slots


def encode_text(model: UnifiedModel, tokenizer: Any, text: str, name: str) -> np.ndarray:
    """A text with its brackets, padded to [layout.<name>] int32; PromptError if it is invalid or too long."""
    size, asked = getattr(model.layout, name), name in ("prompt", "instruction")
    what = "the prompt" if asked else f"the text {name} an image"
    if asked and not text.strip():
        raise PromptError("the prompt is empty")
    check = markup.check_characters if name == "before" else markup.check_plain
    try:
        check(text, what)
    except ValueError as error:
        raise PromptError(str(error)) from None
    if not size:
        raise PromptError(f"the model has no room for {what} (layout.{name} is 0)")
    ids = tokenizer.encode(text)
    if asked and not ids:
        raise PromptError(f"the prompt {text!r} has no tokens")
    if len(ids) > size - 2:
        raise PromptError(
            f"{what} has {len(ids)} tokens, {size - 2} fit (layout.{name} = {size}, two of which are "
            f"brackets): {text[:60]!r}"
        )
    slot = np.full(size, PAD_ID, np.int32)
    slot[: len(ids) + 2] = [model.ids.im_start, *ids, model.ids.im_end]
    return slot


def _fitting(model: UnifiedModel, image: np.ndarray, what: str) -> np.ndarray:
    wanted = (*model.layout.image_size, 3)
    if image.dtype != np.uint8 or image.shape != wanted:
        raise PromptError(f"{what} is {image.dtype}{list(image.shape)}, the model takes uint8{list(wanted)}")
    return image
