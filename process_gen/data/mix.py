"""Packing of a layout measured from text lengths alone, for any trajectories and for the paper's data mix.

Three subsets (paper, section 4; arXiv 2604.04746), of these sizes:

    32,012  multi-turn trajectories without inspections
    15,201  multi-turn trajectories, every step inspected; in 8,296 the last step is refined
     5,000  single drafts, inspected
    10,000  single drafts, inspected and refined

The paper gives 3.51 images of a trajectory on average and 5 at most: two to five are
drawn here, so that their mean is 3.5. It does not give lengths of texts: 40 to 100
tokens are assumed (in a slot below 100, 40% to all of it), their brackets included. No
prompt has an input image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from process_gen.data.encode import spans
from process_gen.data.errors import SlotOverflow, TooLong
from process_gen.data.packing import Arrays, PackedBatches, PackingReport, Policy, packing_stats
from process_gen.data.tokenizers import Tokenizer
from process_gen.trajectory.batch import PAD_ID
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Stage, Trajectory, stage_bits, targets_of

SUBSETS = {"multi_turn": 32_012, "conflict": 15_201, "aligned": 5_000, "misaligned": 10_000}
REFINED = 8_296
"""Trajectories of `conflict` whose last step is refined."""
SHORTEST, LONGEST = 40, 100
"""Tokens of a text."""
TRAJECTORIES = 6_000


@dataclasses.dataclass(frozen=True)
class Lengths:
    """What packing needs to know of a trajectory. Lengths are tokens with their two brackets, 0 where absent.

    Attributes:
      prompt, instruction: lengths of the prompt's texts.
      before, after: lengths of the texts of each turn.
      refines: whether each turn is a refine turn.
      targets: of each turn, how many turns later its flow target's image stands; -1 for no target.
      images: whether each turn has an image.
      prompt_image: whether the prompt has one.
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
        """Returns the lengths of a trajectory, its texts encoded by `tokenizer`."""

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

    def parts(self, layout: Layout) -> list[Lengths]:
        """Returns the lengths of its parts as `encode.split_trajectory` makes them; one where it fits."""
        turns = ("before", "after", "refines", "targets", "images")
        starts = [turn for turn, refines in enumerate(self.refines) if not refines]
        steps = [end - start for start, end in zip(starts, [*starts[1:], len(self.refines)], strict=True)]
        return [
            dataclasses.replace(self, **{name: getattr(self, name)[first:stop] for name in turns})
            for first, _, stop in spans(steps, layout)
        ]


def arrays(layout: Layout, lengths: Lengths) -> Arrays:
    """Returns the fields of `encode_trajectory` for given lengths: texts are zeros, images have no pixels.

    `supervised` and `is_last` are set as for a whole trajectory, also of a part.

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
    if length > size and not layout.leaves_out(slot):
        raise SlotOverflow(slot, length - 2, size - 2)
    tokens = np.full(size, PAD_ID, np.int32)
    tokens[:length] = 0
    return tokens


def packed(layout: Layout, found: Sequence[Lengths], split: bool = False) -> Iterator[Arrays]:
    """Yields batches of one packed row until all trajectories have been read; what does not fit is left out.

    `split` splits trajectories that are longer than a row, as `config.data.on_long=split` does.
    """
    stream, policy = grain.MapDataset.source(found), Policy("skip", 1.0)
    identity = {"trajectories": "lengths alone"}

    def encode(one: Lengths) -> list[Arrays]:
        return [arrays(layout, part) for part in (one.parts(layout) if split else [one])]

    return iter(PackedBatches({0: stream}, encode, layout, 8, policy, identity, epoch=len(found)))


def report_of(layout: Layout, found: Sequence[Lengths], split: bool = False) -> PackingReport:
    """Measures how much of packed rows is useful; raises ValueError where no trajectory fits."""
    return packing_stats(packed(layout, found, split), layout)


# ------------------------------------------------------------- the mix


def draw(layout: Layout, trajectories: int = TRAJECTORIES, seed: int = 0) -> list[Lengths]:
    """Draws the lengths of trajectories of the paper's mix."""
    rng = np.random.default_rng(seed)
    names, sizes = zip(*SUBSETS.items(), strict=True)
    subsets = rng.choice(len(names), trajectories, p=np.array(sizes) / sum(sizes))
    return [_trajectory(layout, rng, names[subset]) for subset in subsets]


def _trajectory(layout: Layout, rng: np.random.Generator, subset: str) -> Lengths:
    single = subset in ("aligned", "misaligned")
    drafts = 1 if single else int(rng.integers(2, 6))
    refined = subset == "misaligned" or (
        subset == "conflict" and rng.random() < REFINED / SUBSETS["conflict"]
    )
    turns = drafts + refined
    refines = np.arange(turns) >= drafts
    inspected = ~refines & (subset != "multi_turn")
    targets = [0] * turns
    if refined:
        targets[-2] = 1
    return Lengths(
        prompt=_length(layout.prompt, rng),
        before=tuple(_length(layout.before, rng) for _ in range(turns)),
        after=tuple(_length(layout.after, rng, there) for there in inspected),
        refines=tuple(refines.tolist()),
        targets=tuple(targets),
        images=(True,) * turns,
    )


def _length(slot: int, rng: np.random.Generator, there: bool = True) -> int:
    longest = min(LONGEST, slot)
    if not there or not slot:
        return 0
    shortest = SHORTEST if longest == LONGEST else max(1, round(0.4 * longest))
    return int(rng.integers(shortest, longest + 1))


def rows(layout: Layout, trajectories: int = TRAJECTORIES, seed: int = 0) -> Iterator[Arrays]:
    """Yields batches of one packed row of the mix, until all trajectories have been read."""
    return packed(layout, draw(layout, trajectories, seed))


def report(layout: Layout, trajectories: int = TRAJECTORIES) -> PackingReport:
    """Measures how much of packed rows of the mix is useful, and what the rest is."""
    return report_of(layout, draw(layout, trajectories))
