"""Static slots: how many tokens each part of a turn may take.

Everything whose size a compiled program must know is fixed here, from the
config. Only padding, presence and kind (draft or refine) are data. One turn
holds these segments, in logical order:

    before    text     <|im_start|> <ins>..</ins><des>..</des> <|im_end|>  of a draft
                       <|im_start|> <refine>..</refine> <|im_end|>         of a refine turn
    noised    images   flow targets, one per noised copy
    image     image    the image that later tokens see
    after     text     <|im_start|> .. <|im_end|>, the inspection

Each image stands between `<|vision_start|>` and `<|vision_end|>`. With a
`vit_grid`, the clean image is followed by `image_vit`: the same image as ViT tokens,
between two vision tokens of its own. Both segments together are a visual state.

Before the first turn stands the prompt: a text, and if the layout has them an input
image as a visual state (`prompt_image`, `prompt_image_vit`) and a second text after
it (`instruction`).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

Kind = Literal["text", "noised", "clean"]

FIELD_KINDS = {"image": "uint8", "mask": "uint8", "number": "float32", "flag": "bool"}
"""Kind of a user-defined field -> its dtype in a batch."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """A contiguous run of tokens with one attention rule, that of its `kind`.

    Attributes:
      name: as in the table above.
      kind: `text` (causal inside), `clean` image (full inside) or `noised`
        image (full inside, seen by nobody else).
      text: number of tokens with a vocabulary id. Those of an image are its two
        vision tokens.
      latents: number of latent tokens.
      vit: number of ViT tokens; an image has either these or latents.
    """

    name: str
    kind: Kind
    text: int
    latents: int = 0
    vit: int = 0

    @property
    def tokens(self) -> int:
        return self.text + self.latents + self.vit


@dataclasses.dataclass(frozen=True)
class Layout:
    """The static sizes of one packed row.

    Attributes:
      image_size: height and width in pixels.
      latent_grid: rows and columns of latent tokens of one image.
      latent_values: values of one latent token (patch * patch * channels).
      vit_grid: rows and columns of ViT tokens of one image in context; (0, 0)
        leaves them out.
      prompt, before, after: tokens of each text slot, with `<|im_start|>` and
        `<|im_end|>`; `before` holds plans and refine instructions, `after`
        inspections. `before` and `after` may be 0: texts before images are then
        an error, and inspections are ignored.
      prompt_image: whether a prompt may hold an input image, after its text.
      instruction: tokens of a text slot of the prompt after its image; 0 leaves it out.
      turns: turn slots of a row.
      trajectories: how many trajectories a row may hold, one after another.
      copies: flow targets per image, each with its own timestep and noise. More
        copies give more image supervision per text token.
      context: what a turn sees of earlier ones, see `visibility.seen_parts`.
      corrections: refine turns of a step, at most. With `step` and `last` it bounds
        how far back a turn can see.
      fields: user-defined fields of a turn, (name, kind) each, for losses to read: `image`
        and `mask` of the images' size, `number` or `flag`.
    """

    image_size: tuple[int, int] = (32, 32)
    latent_grid: tuple[int, int] = (4, 4)
    latent_values: int = 192
    vit_grid: tuple[int, int] = (0, 0)
    prompt: int = 40
    before: int = 48
    after: int = 24
    prompt_image: bool = False
    instruction: int = 0
    turns: int = 6
    trajectories: int = 2
    copies: int = 1
    context: Literal["full", "step", "last"] = "full"
    corrections: int = 1
    fields: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        for field in (f.name for f in dataclasses.fields(self) if f.type == "int"):
            least = 0 if field in ("instruction", "before", "after", "corrections") else 1
            if getattr(self, field) < least:
                raise ValueError(f"layout.{field} must be at least {least}, got {getattr(self, field)}")
        if len(self.vit_grid) != 2 or min(self.vit_grid) < 0 or (0 in self.vit_grid and any(self.vit_grid)):
            raise ValueError(
                f"layout.vit_grid must be rows and columns, or (0, 0) for none, got {self.vit_grid}"
            )
        for name, kind in self.fields:
            if kind not in FIELD_KINDS:
                raise ValueError(f"data.fields.{name} must be one of {', '.join(FIELD_KINDS)}, got {kind!r}")
        if self.trajectories > self.turns:
            raise ValueError(
                f"layout.trajectories ({self.trajectories}) exceeds layout.turns ({self.turns}): "
                "a trajectory has at least one turn"
            )
        if self.context not in ("full", "step", "last"):
            raise ValueError(f"layout.context must be 'full', 'step' or 'last', got {self.context!r}")

    def field_shape(self, kind: str) -> tuple[int, ...]:
        """The shape of a field of some kind, of one turn."""
        return {"image": (*self.image_size, 3), "mask": tuple(self.image_size)}.get(kind, ())

    @property
    def latents(self) -> int:
        """Latent tokens of one image."""
        return self.latent_grid[0] * self.latent_grid[1]

    @property
    def vit_tokens(self) -> int:
        """ViT tokens of one image; 0 where images in context are latents only."""
        return self.vit_grid[0] * self.vit_grid[1]

    @property
    def state_positions(self) -> int:
        """Rotary positions that a visual state takes: one for its latents, one for its ViT tokens."""
        return len(self.state_slots("image"))

    def leaves_out(self, slot: str) -> bool:
        """Whether texts of the data are ignored: inspections, if the layout has no slot for them."""
        return slot == "after" and not self.after

    def text_slot(self, name: str) -> Segment:
        return Segment(name, "text", getattr(self, name))

    def image_slot(self, name: str, kind: Kind = "clean") -> Segment:
        return Segment(name, kind, 2, self.latents)

    def state_slots(self, name: str) -> tuple[Segment, ...]:
        """A clean image as later tokens see it: its latents, then its ViT tokens if the layout has any."""
        vit = (Segment(f"{name}_vit", "clean", 2, vit=self.vit_tokens),) if self.vit_tokens else ()
        return self.image_slot(name), *vit

    @functools.cached_property
    def prompt_parts(self) -> dict[str, tuple[Segment, ...]]:
        """What a prompt may hold, in logical order: texts and a visual state by name."""
        parts = {"prompt": (self.text_slot("prompt"),)}
        if self.prompt_image:
            parts["prompt_image"] = self.state_slots("prompt_image")
        if self.instruction:
            parts["instruction"] = (self.text_slot("instruction"),)
        return parts

    @functools.cached_property
    def prompt_segments(self) -> tuple[Segment, ...]:
        """The segments of a prompt."""
        return tuple(s for part in self.prompt_parts.values() for s in part)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of a prompt, all its parts together."""
        return sum(s.tokens for s in self.prompt_segments)

    @functools.cached_property
    def turn_segments(self) -> tuple[Segment, ...]:
        """Every segment of a training turn, in logical order."""
        noised = tuple(self.image_slot(f"noised_{i}", "noised") for i in range(self.copies))
        before, image, after = self.visible_parts.values()
        return (*before, *noised, *image, *after)

    @functools.cached_property
    def visible_parts(self) -> dict[str, tuple[Segment, ...]]:
        """What later tokens may see of a turn, in logical order: `before`, `image` and `after`."""
        texts = {name: (self.text_slot(name),) if getattr(self, name) else () for name in ("before", "after")}
        return {"before": texts["before"], "image": self.state_slots("image"), "after": texts["after"]}

    @property
    def visible_tokens(self) -> int:
        """Tokens of a turn that later tokens may see."""
        return sum(s.tokens for part in self.visible_parts.values() for s in part)

    @property
    def window(self) -> int:
        """How many turns back a turn can see, at most: to the start of the row, or of the step before."""
        two_steps = 2 * (1 + self.corrections)
        return (self.turns if self.context == "full" else min(self.turns, two_steps)) - 1

    @property
    def row_tokens(self) -> int:
        """Tokens of a row: its prompts and its turns."""
        turn = sum(s.tokens for s in self.turn_segments)
        return self.trajectories * self.prompt_tokens + self.turns * turn
