"""FLOP of a train step, by part of the model: the useful ones, and those that a device executes.

A multiply-add is two FLOP. Counted are matrix products and convolutions: norms,
activations, softmax and the optimizer are not. Attention is two products per pair of a
query and a key; a pair that a mask hides is not useful.

The functions take counts, named as by `process_gen.training.amounts` without `batch/`: those of
a batch, sums over batches, or those of a row whose slots are all full (`every_slot`). Useful FLOP
are of what a batch holds. A device also executes padding, hidden pairs and recomputation.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping

from process_gen.models import kernels, masked
from process_gen.models.config import ModelConfig
from process_gen.models.positions import TIME_FEATURES
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.visibility import Chunk

PARTS = ("und", "gen", "attention", "vit", "head", "autoencoder")
"""`und` and `gen` are the projections and MLPs of the two experts (and what embeds latents and timesteps),
`attention` the products of queries, keys and values, `vit` all of the vision transformer and its connector,
`head` the vocabulary, `autoencoder` the encoding of images."""

Flops = dict[str, float]
"""FLOP by part."""

Counts = Mapping[str, float]
"""What rows hold, by name; a name that is missing counts 0."""


def every_slot(layout: Layout) -> dict[str, float]:
    """Counts of one row in which every slot is full, as a device processes it, without attention pairs."""
    prompt, turn = Chunk(layout.prompt_segments), Chunk(layout.turn_segments)
    r, s = layout.trajectories, layout.turns
    segments = [*layout.prompt_segments * r, *layout.turn_segments * s]
    history = float(sum(min(slot, layout.window) for slot in range(s)))
    return {
        "rows": 1.0,
        "slots": float(layout.row_tokens),
        "turns": float(s),
        "trajectories": float(r),
        "und_tokens": float(r * prompt.und_tokens + s * turn.und_tokens),
        "gen_tokens": float(r * prompt.latent_tokens + s * turn.latent_tokens),
        "head_tokens": float(s * (layout.before + layout.after + 1) + r),
        "images": float(sum(one.latents > 0 and one.kind == "clean" for one in segments)),
        "flow_targets": float(s * layout.copies),
        "vit_images": float(sum(one.vit > 0 for one in segments)),
        "history_turns": history,
        "branch_turns": history,
    }


def forward(config: ModelConfig, layout: Layout, counts: Counts) -> Flops:
    """FLOP of one forward pass over what was counted."""
    held = collections.defaultdict(float, counts)
    expert, width = config.layers * expert_flops(config), config.width
    latents = 2.0 * layout.latent_values * width
    images = held["images"] + held["flow_targets"]
    into_model = layout.latents * latents + 2.0 * width * (TIME_FEATURES + width)  # and its timestep
    return {
        "und": held["und_tokens"] * expert,
        "gen": held["gen_tokens"] * expert
        + images * into_model
        + held["flow_targets"] * layout.latents * latents,
        "attention": held["attention_pairs"] * _pair_flops(config),
        "vit": held["vit_images"] * (_vit_flops(config, layout) if layout.vit_tokens else 0.0),
        "head": 2.0 * width * config.vocab_size * held["head_tokens"],
        "autoencoder": held["images"] * encoder_flops(config, layout),
    }


def useful(config: ModelConfig, layout: Layout, counts: Counts, encode: bool = True) -> Flops:
    """FLOP of a forward and a backward pass over what was counted, nothing recomputed.

    `encode`: whether the step encodes its images; not where latents were made ahead of time.
    """
    once = forward(config, layout, counts)
    images = once.pop("autoencoder")
    return {part: 3.0 * flops for part, flops in once.items()} | {"autoencoder": images if encode else 0.0}


def expert_flops(config: ModelConfig) -> float:
    """FLOP of one token in one layer of its expert."""
    heads, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return 2.0 * config.width * (2 * heads + 2 * kv + 3 * config.mlp)


def _pair_flops(config: ModelConfig) -> float:
    return 4.0 * config.heads * config.head_dim * config.layers


def _vit_flops(config: ModelConfig, layout: Layout) -> float:
    """FLOP of the ViT and the connector over one image."""
    v, patches = config.vit, layout.vit_tokens
    layer = 2.0 * patches * v.width * (4 * v.width + 2 * v.mlp) + 4.0 * patches * patches * v.width
    embed = 2.0 * patches * 3 * v.patch**2 * v.width
    return v.layers * layer + embed + 2.0 * patches * config.width * (v.width + config.width)


# ------------------------------------------------------------ what a device does


@dataclasses.dataclass(frozen=True)
class Program:
    """How a train step is computed.

    Attributes:
      order: of the loops, `layers` or `scan`.
      platform: `tpu`, `gpu` or `cpu`; decides which kernel `flash` is.
      encode: whether the step encodes its images.
    """

    order: str = "layers"
    platform: str = "cpu"
    encode: bool = True

    def attention(self, config: ModelConfig) -> str:
        """The kernel of attention, or `dense`."""
        flash = kernels.FLASH.get(self.platform, "blocked")
        return flash if config.attention == "flash" else config.attention


def computed(config: ModelConfig, layout: Layout, counts: Counts, program: Program) -> Flops:
    """FLOP that a device executes in one forward pass over rows: full slots, hidden pairs included.

    Of the counts it takes the number of rows, and how much empty history attention skips.
    """
    once = forward(config, layout, every_slot(layout))
    prompts, turns = _pairs(config, layout, counts, program)
    found = {part: counts["rows"] * flops for part, flops in once.items()}
    return found | {"attention": _pair_flops(config) * (prompts + turns)}


def executed(config: ModelConfig, layout: Layout, counts: Counts, program: Program) -> Flops:
    """FLOP that a device executes in a train step over rows: forward, backward and recomputation.

    The backward pass recomputes each layer once, as far as `model.remat` says. With the
    order `scan` it computes each turn once more besides, unless `model.remat` is `none`.
    """
    once, kind = computed(config, layout, counts, program), program.attention(config)
    again = 1.0 if program.order == "scan" and config.remat != "none" else 0.0
    in_turns = _share_of_turns(config, layout)
    layers = _linear_again(config)
    found = {part: (3.0 + layers + again * in_turns[part]) * once[part] for part in ("und", "gen", "vit")}
    recomputed = 0.0 if config.remat == "none" else 1.0  # other policies keep no product over heads
    if config.remat == "save_attended" and kind == "blocked":  # others compute their softmax sums again
        recomputed = 0.0
    passes = 1.0 + recomputed + _BACKWARD[kind]
    prompts, turns = _pairs(config, layout, counts, program)
    found["attention"] = _pair_flops(config) * (passes * (prompts + turns) + again * turns)
    found["head"] = 3.0 * once["head"]
    if config.logits_in_chunks:  # logits again; the embedding's gradient is a product
        chunks = ((layout.trajectories, layout.prompt_segments), (layout.turns, layout.turn_segments))
        words = sum(slots * Chunk(segments).text_tokens for slots, segments in chunks)
        found["head"] += once["head"] + counts["rows"] * 2.0 * words * config.vocab_size * config.width
    found["autoencoder"] = once["autoencoder"] if program.encode else 0.0
    return {part: found[part] for part in PARTS}


def _linear_again(config: ModelConfig) -> float:
    """The share of FLOP of a layer's projections and MLP that the backward pass recomputes."""
    heads = config.heads * config.head_dim + 2 * config.kv_heads * config.head_dim
    last = 2.0 * config.width * config.mlp / expert_flops(config)  # the MLP's last, which no gradient needs
    named = 2.0 * config.width * heads / expert_flops(config)  # queries, keys and values
    policies = {"none": 0.0, "dots": 0.0, "full": 1.0 - last, "offload": 1.0 - last}
    return policies.get(config.remat, 1.0 - last - named)


def _share_of_turns(config: ModelConfig, layout: Layout) -> Flops:
    """By part, the share of a forward pass that is spent on turns; the rest is prompts'."""
    every, prompt = every_slot(layout), Chunk(layout.prompt_segments)
    r, images = layout.trajectories, int(layout.prompt_image)
    prompts = {
        "und_tokens": r * prompt.und_tokens,
        "gen_tokens": r * prompt.latent_tokens,
        "images": r * images,
        "vit_images": r * images,
    }
    whole, part = forward(config, layout, every), forward(config, layout, prompts)
    return {name: 1.0 - part[name] / whole[name] if whole[name] else 0.0 for name in whole}


_BACKWARD = {"dense": 2.5, "blocked": 2.5, "splash": 3.5, "cudnn": 2.5}
"""FLOP of attention's backward pass in forward passes: all compute scores again, splash twice (one kernel
for queries, one for keys and values)."""


def _pairs(config: ModelConfig, layout: Layout, counts: Counts, program: Program) -> tuple[float, float]:
    """Query-key pairs whose scores a forward pass computes, of prompts and of turns."""
    kind = program.attention(config)
    prompt, turn, rows = Chunk(layout.prompt_segments), Chunk(layout.turn_segments), counts["rows"]
    slots = rows * layout.turns
    most = sum(min(slot, layout.window) for slot in range(layout.turns)) / layout.turns
    most = float(layout.window) if program.order == "scan" else most
    window = layout.window
    # `dense` skips the history before the oldest turn that any row sees, unless all of it is one slice;
    # `splash` whole blocks that no row of the device sees: here a device has one row.
    at_once = not window or masked.turns_together(layout.visible_tokens, window) == window
    dense = float(window) if at_once else counts["branch_turns"] / slots
    seen = {"dense": dense, "splash": counts["history_turns"] / slots}.get(kind, most)
    context, room = (layout.prompt_tokens + layout.visible_tokens * turns for turns in (seen, most))
    prompts = rows * layout.trajectories * _chunk_pairs(kind, prompt, 0.0, 0.0)
    return prompts, slots * _chunk_pairs(kind, turn, context, room)


def _chunk_pairs(kind: str, chunk: Chunk, context: float, room: float) -> float:
    """Query-key pairs of a chunk after `context` keys that are not skipped, out of `room` keys."""
    if kind == "cudnn" or (kind == "dense" and chunk.tokens <= masked.KEYS):  # one call with a mask
        return chunk.tokens * (context + chunk.tokens)
    pairs = 0.0
    for call in chunk.calls:
        queries, own = (sum(piece.stop - piece.start for piece in part) for part in (call.queries, call.keys))
        keys = context + own
        if kind == "splash":
            queries += -queries % kernels.LANES
            block = kernels.key_block(round(room) + own)
            keys = min(room + own, keys + block / 2) if context < room else keys
            keys += -(round(room) + own) % block
            keys -= queries / 2 if call.causal else 0.0  # blocks above the diagonal
        pairs += queries * keys
    return pairs


# ------------------------------------------------------------------ autoencoder


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
