"""What a train step computes, by part of the model, counted from its sizes.

A multiply-add is two FLOP. Counted are matrix products and convolutions: norms,
activations, softmax and the optimizer are not. Attention is two products per pair of a
query and a key; a pair that a causal mask hides is no useful one.

W width, N query heads, K key/value heads, H head, F hidden, V values of a latent token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from process_gen.models.config import ModelConfig
from process_gen.models.kernels import BLOCK_KV
from process_gen.models.positions import TIME_FEATURES
from process_gen.trajectory.layout import Layout, Segment
from process_gen.trajectory.visibility import Chunk

PARTS = ("und", "gen", "attention", "vit", "head", "autoencoder")
"""`und` and `gen` are the projections and MLPs of the two experts (and what embeds latents and timesteps),
`attention` the products of queries, keys and values, `vit` all of the vision transformer and its connector,
`head` the vocabulary, `autoencoder` the encoding of images."""

Flops = dict[str, float]
"""FLOP by part."""


@dataclasses.dataclass(frozen=True)
class Fill:
    """How much of a row's slots real data fills, as shares; padding takes the rest.

    Attributes:
      texts: of the tokens of a text slot.
      steps: of the step slots of a row (and of the trajectories that it has room for).
      refines: of the steps, those that hold a correction.
    """

    texts: float = 1.0
    steps: float = 1.0
    refines: float = 1.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if not 0 < getattr(self, field.name) <= 1:
                raise ValueError(
                    f"fill {field.name} must be above 0 and at most 1: {getattr(self, field.name)}"
                )

    def of(self, *segments: Segment) -> float:
        """The share of a segment's tokens that is there; of two, the share of pairs of their tokens."""
        share = self.steps
        if any(s.name.startswith("refine") for s in segments):
            share *= self.refines
        for s in segments:
            share *= self.texts if s.kind == "text" else 1.0
        return share


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Tokens of a row by the expert that they go through."""

    und: float
    gen: float

    @property
    def all(self) -> float:
        return self.und + self.gen


def tokens(layout: Layout, fill: Fill | None = None) -> Tokens:
    """Tokens of one row: its prompts and its steps; every slot, or those that a `fill` leaves."""
    parts = ((layout.prompt_segments, layout.trajectories), (layout.step_segments, layout.steps))
    share = (lambda s: 1.0) if fill is None else fill.of
    return Tokens(
        sum(times * share(s) * (s.text + s.vit) for segments, times in parts for s in segments),
        sum(times * share(s) * s.latents for segments, times in parts for s in segments),
    )


def forward(config: ModelConfig, layout: Layout, fill: Fill | None = None) -> Flops:
    """FLOP of one forward pass over one row.

    Args:
      config, layout: sizes.
      fill: counts tokens and pairs of real data; None counts every slot, and every pair that the attention
        of the config computes.
    """
    count = tokens(layout, fill)
    images = [s for s in layout.prompt_segments if s.latents], [s for s in layout.step_segments if s.latents]
    share = (lambda s: 1.0) if fill is None else fill.of
    many = sum(layout.trajectories * share(s) for s in images[0])
    many += sum(layout.steps * share(s) for s in images[1])
    noised = sum(layout.steps * share(s) for s in images[1] if s.kind == "noised")
    views = sum(layout.trajectories * share(s) for s in layout.prompt_segments if s.vit)
    views += sum(layout.steps * share(s) for s in layout.step_segments if s.vit)
    expert, values, width = config.layers * expert_flops(config), layout.latent_values, config.width
    latents = many * layout.latents * 2 * values * width + noised * layout.latents * 2 * values * width
    times = many * 2 * (TIME_FEATURES * width + width * width)
    pairs = _computed_pairs(config, layout) if fill is None else _visible_pairs(layout, fill)
    return {
        "und": count.und * expert,
        "gen": count.gen * expert + latents + times,
        "attention": 4.0 * config.heads * config.head_dim * config.layers * pairs,
        "vit": views * _view_flops(config, layout) if views else 0.0,
        "head": 2.0 * width * config.vocab_size * scored_tokens(layout, fill),
        "autoencoder": _encoded_images(layout, fill) * encoder_flops(config, layout),
    }


def expert_flops(config: ModelConfig) -> float:
    """FLOP of one token in one layer of its expert."""
    heads, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return 2.0 * config.width * (2 * heads + 2 * kv + 3 * config.mlp)


def scored_tokens(layout: Layout, fill: Fill | None = None) -> float:
    """Hidden states of a row that the head sees: texts of the steps, and what closes an image."""
    share = (lambda s: 1.0) if fill is None else fill.of
    texts = sum(share(s) * s.text for s in layout.step_segments if s.kind == "text")
    ends = sum(share(s) for s in layout.step_segments if s.latents)
    return layout.steps * (texts + ends) + layout.trajectories * (1.0 if fill is None else fill.steps)


def _view_flops(config: ModelConfig, layout: Layout) -> float:
    """FLOP of the ViT and the connector over one image."""
    v, patches = config.vit, layout.vit_tokens
    layer = 2.0 * patches * v.width * (4 * v.width + 2 * v.mlp) + 4.0 * patches * patches * v.width
    embed = 2.0 * patches * 3 * v.patch**2 * v.width
    return v.layers * layer + embed + 2.0 * patches * config.width * (v.width + config.width)


# ------------------------------------------------------------------- attention

_PASSING_OVER = ("flash", "splash", "cudnn")


def _visible_pairs(layout: Layout, fill: Fill) -> float:
    """Pairs of a query and a key that it sees, in one row whose trajectories are equally long."""
    prompt, step = layout.prompt_segments, layout.step_segments
    pairs = layout.trajectories * _pairs_inside(prompt, fill) + layout.steps * _pairs_inside(step, fill)
    before = sum(fill.of(s) / fill.steps * s.tokens for s in prompt)
    seen = sum(fill.of(s) / fill.steps * s.tokens for s in layout.visible_segments)
    queries = sum(fill.of(s) * s.tokens for s in step)
    length = layout.steps / layout.trajectories
    if layout.context == "full":
        earlier = seen * (length - 1) / 2
    else:
        kept = sum(fill.of(s) / fill.steps * s.tokens for s in layout.history_segments)
        earlier = kept * (length - 1) / length
    return pairs + layout.steps * queries * (before + earlier)


def _pairs_inside(segments: Sequence[Segment], fill: Fill) -> float:
    """Pairs of one chunk: a segment sees itself (a text causally) and what is before it and not noised."""
    pairs = 0.0
    for i, query in enumerate(segments):
        own = query.tokens * (query.tokens + 1) / 2 if query.kind == "text" else query.tokens**2
        pairs += fill.of(query) * own * (fill.texts if query.kind == "text" else 1.0)
        pairs += sum(
            fill.of(query, key) * query.tokens * key.tokens for key in segments[:i] if key.kind != "noised"
        )
    return pairs


def _computed_pairs(config: ModelConfig, layout: Layout) -> float:
    """Pairs whose scores are computed, hidden ones included.

    Kernels of accelerators pass over what is empty of a history: in one of full context, all but the earlier
    steps of the same trajectory, rounded up to blocks. That holds for one row a device, and not for the short
    texts of `cudnn`.
    """
    prompt, step = Chunk(layout.prompt_segments), Chunk(layout.step_segments)
    history = float(sum(s.tokens for s in layout.history_segments))
    if layout.context == "full" and config.attention in _PASSING_OVER:
        earlier = layout.visible_tokens * (layout.steps / layout.trajectories - 1) / 2
        history = min(history, earlier + BLOCK_KV)
    context = layout.prompt_slots + history
    return layout.trajectories * _chunk_pairs(config, prompt, 0) + layout.steps * _chunk_pairs(
        config, step, context
    )


def _chunk_pairs(config: ModelConfig, chunk: Chunk, context: float) -> float:
    if config.attention == "dense":
        return chunk.tokens * (context + chunk.tokens)
    grouped, pairs, before = config.attention == "grouped", 0.0, 0
    runs: list[list[Segment]] = []
    for s in chunk.segments:  # one call for texts in a row; images have one together if they are grouped
        if runs and runs[-1][-1].kind == s.kind and (grouped or s.kind == "text"):
            runs[-1].append(s)
        else:
            runs.append([s])
    for run in runs:
        own = sum(s.tokens for s in run)
        causal = run[0].kind == "text" and not grouped  # kernels leave out what comes later
        pairs += own * (context + before + (own / 2 if causal else own))
        before += own if run[0].kind != "noised" else 0
    return pairs


# ------------------------------------------------------------------ autoencoder


def _encoded_images(layout: Layout, fill: Fill | None) -> float:
    """Images of a row that the autoencoder reads: every slot, since it does not know which are empty."""
    prompts = layout.trajectories if layout.prompt_image else 0
    if fill is None:
        return 2 * layout.steps + prompts
    return fill.steps * ((1 + fill.refines) * layout.steps + prompts)


def encoder_flops(config: ModelConfig, layout: Layout) -> float:
    """FLOP of encoding one image; 0 where latents are pixels."""
    if config.autoencoder != "flux":
        return 0.0
    c, pixels = config.flux, float(layout.image_size[0] * layout.image_size[1])
    total, inputs = _conv(pixels, c.in_channels, c.ch), c.ch
    for level, mult in enumerate(c.ch_mult):
        outputs = c.ch * mult
        for _ in range(c.res_blocks):
            total, inputs = total + _block(pixels, inputs, outputs), outputs
        if level < len(c.ch_mult) - 1:
            pixels /= 4
            total += _conv(pixels, outputs, outputs)
    middle = 2 * _block(pixels, inputs, inputs) + 8 * pixels * inputs**2 + 4 * pixels**2 * inputs
    return total + middle + _conv(pixels, inputs, 2 * c.z_channels)


def _conv(pixels: float, inputs: int, outputs: int) -> float:
    return 2 * 9 * pixels * inputs * outputs


def _block(pixels: float, inputs: int, outputs: int) -> float:
    shortcut = 0 if inputs == outputs else 2 * pixels * inputs * outputs
    return _conv(pixels, inputs, outputs) + _conv(pixels, outputs, outputs) + shortcut


# ------------------------------------------------------------------- train step


def train(config: ModelConfig, layout: Layout, fill: Fill | None = None, encode: bool = True) -> Flops:
    """FLOP of a forward and a backward pass over one row, nothing recomputed.

    Args:
      config, layout, fill: see `forward`.
      encode: whether the step encodes its images; not where latents were made ahead of time.
    """
    once = forward(config, layout, fill)
    images = once.pop("autoencoder")
    return {part: 3.0 * flops for part, flops in once.items()} | {"autoencoder": images if encode else 0.0}


_BACKWARD = {"flash": 3.5, "splash": 3.5, "cudnn": 2.5, "blocked": 3.0}
"""Backward pass of attention in forward passes: 2 where the weights are kept; kernels compute them again,
splash twice over (one kernel for queries, one for keys and values)."""


def executed(config: ModelConfig, layout: Layout, encode: bool = True) -> Flops:
    """FLOP that a device works through for one row: every slot, and what the backward pass recomputes."""
    once = forward(config, layout)
    prompts = _only_prompts(config, layout)
    heads = config.heads * config.head_dim + 2 * config.kv_heads * config.head_dim
    named = 1.0 - 2.0 * config.width * heads / expert_flops(config)  # all but queries, keys and values
    layers = {"none": 0.0, "dots": 0.0, "full": 1.0, "offload": 1.0}.get(config.remat, named)
    steps = 1.0 if config.remat_steps else 0.0
    scores = 0.0 if config.remat == "none" else 1.0  # products with a batch dimension are never kept
    found = {}
    for part in ("und", "gen", "vit", "attention"):
        back = _BACKWARD.get(config.attention, 2.0) + scores if part == "attention" else 2.0 + layers
        found[part] = (1.0 + back) * once[part] + steps * (once[part] - prompts[part])
    found["head"] = (4.0 if config.logits_in_chunks else 3.0) * once["head"]
    found["autoencoder"] = once["autoencoder"] if encode else 0.0
    return found


def _only_prompts(config: ModelConfig, layout: Layout) -> Flops:
    """What the prompts alone cost in a forward pass, which is not recomputed step by step."""
    chunk = Chunk(layout.prompt_segments)
    r, latents, values = layout.trajectories, chunk.latent_tokens, layout.latent_values
    expert = config.layers * expert_flops(config)
    pairs = _chunk_pairs(config, chunk, 0)
    return {
        "und": r * chunk.und_tokens * expert,
        "gen": r * latents * (expert + 2.0 * values * config.width),
        "attention": 4.0 * config.heads * config.head_dim * config.layers * r * pairs,
        "vit": r * _view_flops(config, layout) if chunk.vit_tokens else 0.0,
    }
