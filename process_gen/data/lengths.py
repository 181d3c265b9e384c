"""Trajectories as lengths alone, and how well rows of a layout hold them: no pixel and no word is needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from process_gen.data.errors import SlotOverflow, TooLong
from process_gen.data.packing import Arrays, PackedBatches, PackingReport, Policy, packing_stats
from process_gen.data.splitting import spans
from process_gen.data.tokenizers import Tokenizer
from process_gen.trajectory.batch import PAD_ID
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Stage, Trajectory, stage_bits, targets_of


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How long the texts of a trajectory are, in tokens with their two brackets, 0 where absent.

    Attributes:
      prompt, instruction: of its prompt.
      before, after: of each turn.
      refines: whether each turn corrects.
      targets: which turn's image its flow target shows, counted from it; -1 for none.
      images: whether each turn has an image.
      prompt_image: whether its prompt has one.
    """

    prompt: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    refines: tuple[bool, ...]
    targets: tuple[int, ...]
    images: tuple[bool, ...]
    prompt_image: bool = False
    instruction: int = 0

    @classmethod
    def of(cls, trajectory: Trajectory, tokenizer: Tokenizer) -> Lengths:
        """Of a trajectory whose texts the tokenizer encodes."""

        def length(text: str | None) -> int:
            return 0 if text is None else len(tokenizer.encode(text)) + 2

        turns = trajectory.turns
        return cls(
            prompt=length(trajectory.prompt or None),
            before=tuple(length(turn.before) for turn in turns),
            after=tuple(length(turn.after) for turn in turns),
            refines=tuple(turn.refines for turn in turns),
            targets=tuple(t - i if t >= 0 else -1 for i, t in enumerate(targets_of(turns))),
            images=tuple(turn.image is not None for turn in turns),
            prompt_image=trajectory.prompt_image is not None,
            instruction=length(trajectory.instruction or None),
        )

    @property
    def steps(self) -> list[list[int]]:
        """The numbers of the turns of each step."""
        found: list[list[int]] = []
        for number, refines in enumerate(self.refines):
            if refines:
                found[-1].append(number)
            else:
                found.append([number])
        return found

    @property
    def corrections(self) -> int:
        """Refine turns of the step that has most of them."""
        return max(len(step) for step in self.steps) - 1

    def parts(self, layout: Layout) -> list[Lengths]:
        """Those of the parts of a trajectory that is longer than a row (`splitting.split_trajectory`)."""
        turns = ("before", "after", "refines", "targets", "images")
        return [
            dataclasses.replace(self, **{name: getattr(self, name)[first:stop] for name in turns})
            for first, _, stop in spans(self.steps, layout)
        ]


def arrays(layout: Layout, lengths: Lengths) -> Arrays:
    """The fields of a `Batch` as `encode_trajectory` gives them; images have no pixels, texts no words.

    Raises:
      TooLong, SlotOverflow: it does not fit the layout.
    """
    turns = len(lengths.before)
    if turns > layout.turns:
        raise TooLong(turns, layout.turns)
    fields = {
        "prompt_tokens": _text(layout, "prompt", lengths.prompt),
        "prompt_index": np.zeros(turns, np.int32),
        "present": np.ones(turns, bool),
        "is_first": np.arange(turns) == 0,
        "is_last": np.arange(turns) == turns - 1,
        "refines": np.array(lengths.refines),
        "has_image": np.array(lengths.images),
        "source": np.zeros(turns, np.int32),
        "supervised": np.full(turns, stage_bits(Stage), np.int32),
        "before_tokens": np.stack([_text(layout, "before", length) for length in lengths.before]),
        "after_tokens": np.stack([_text(layout, "after", length) for length in lengths.after]),
        "image": np.zeros((turns, 0), np.uint8),
        "target": np.array(lengths.targets, np.int32),
        **{f"{name}_weight": np.ones(turns, np.float32) for name in ("before", "image", "after")},
    }
    if layout.prompt_image:
        shown = np.array(lengths.prompt_image)
        fields |= {"prompt_image": np.zeros(0, np.uint8), "has_prompt_image": shown}
    if layout.instruction:
        fields["instruction_tokens"] = _text(layout, "instruction", lengths.instruction)
    return fields


def _text(layout: Layout, slot: str, length: int) -> np.ndarray:
    size = getattr(layout, slot)
    if length > size:
        raise SlotOverflow(slot, length - 2, size - 2)
    tokens = np.full(size, PAD_ID, np.int32)
    tokens[:length] = 0
    return tokens


def rows(layout: Layout, found: Sequence[Lengths], split: bool = False) -> Iterator[Arrays]:
    """Batches of one packed row until all trajectories have been read; what does not fit is left out.

    `split` has trajectories that are longer than a row in parts, as `config.data.on_long=split`.
    """
    stream, policy = grain.MapDataset.source(found), Policy("skip", 1.0)
    identity = {"trajectories": "lengths alone"}

    def encode(one: Lengths) -> list[Arrays]:
        return [arrays(layout, part) for part in (one.parts(layout) if split else [one])]

    return iter(PackedBatches({0: stream}, encode, layout, 8, policy, identity, epoch=len(found)))


def report(layout: Layout, found: Sequence[Lengths], split: bool = False) -> PackingReport:
    """What share of the tokens of a row is useful, and what the others are.

    Raises:
      ValueError: none of the trajectories fits.
    """
    return packing_stats(rows(layout, found, split), layout)
