"""The tables of rules between published names and ours.

BAGEL    `ema.safetensors`: Qwen2 with two sets of weights, SigLIP 2, connector, latents and timesteps
QWEN2    a language model alone; its weights go to both experts, as BAGEL starts
SIGLIP2  a vision tower alone

`autoencoder` makes the table of `ae.safetensors`, or of diffusers' `AutoencoderKL`.
"""

from __future__ import annotations

from process_gen.checkpoints.published.rules import AS_IS, CONV, LINEAR, PATCHES, POINTWISE, Rule, Turn
from process_gen.models.config import FluxConfig


def _linear(theirs: str, ours: str, bias: bool = True, turn: Turn = LINEAR) -> list[Rule]:
    """A matrix and perhaps its bias."""
    return [Rule(f"{theirs}.weight", f"{ours}/kernel", turn), *_bias(theirs, ours, bias)]


def _norm(theirs: str, ours: str, bias: bool = True) -> list[Rule]:
    """A norm's scale and perhaps its bias."""
    return [Rule(f"{theirs}.weight", f"{ours}/scale", AS_IS), *_bias(theirs, ours, bias)]


def _bias(theirs: str, ours: str, there: bool) -> list[Rule]:
    return [Rule(f"{theirs}.bias", f"{ours}/bias", AS_IS)] if there else []


def _expert(layers: str, expert: str, suffix: str) -> list[Rule]:
    """One set of weights of every layer of a Qwen2 decoder."""
    theirs, ours, rules = f"{layers}.{{layer}}", f"backbone/layers/{expert}", []
    for name in ("q_proj", "k_proj", "v_proj"):
        rules += _linear(f"{theirs}.self_attn.{name}{suffix}", f"{ours}/{name}")
    rules += _linear(f"{theirs}.self_attn.o_proj{suffix}", f"{ours}/o_proj", bias=False)
    for name in ("q_norm", "k_norm"):
        rules += _norm(f"{theirs}.self_attn.{name}{suffix}", f"{ours}/{name}", bias=False)
    rules += _norm(f"{theirs}.input_layernorm{suffix}", f"{ours}/input_norm", bias=False)
    rules += _norm(f"{theirs}.post_attention_layernorm{suffix}", f"{ours}/post_attention_norm", bias=False)
    for name in ("gate_proj", "up_proj", "down_proj"):
        rules += _linear(f"{theirs}.mlp{suffix}.{name}", f"{ours}/{name}", bias=False)
    return rules


def _language_model(prefix: str, suffixes: dict[str, str]) -> list[Rule]:
    """A Qwen2 decoder with its embedding and head; `suffixes`: expert -> suffix of its published names."""
    rules = [
        Rule(f"{prefix}model.embed_tokens.weight", "embedding"),
        Rule(f"{prefix}lm_head.weight", "head/kernel", LINEAR),
    ]
    for expert, suffix in suffixes.items():
        rules += _expert(f"{prefix}model.layers", expert, suffix)
        rules += _norm(f"{prefix}model.norm{suffix}", f"backbone/norms_{expert}", bias=False)
    return rules


def _vision_tower(prefix: str, patch_turn: Turn = LINEAR) -> list[Rule]:
    """A SigLIP 2 encoder up to its last norm."""
    layer, rules = f"{prefix}encoder.layers.{{layer}}", []
    rules += _linear(f"{prefix}embeddings.patch_embedding", "vit/patch_embedding", turn=patch_turn)
    rules += [Rule(f"{prefix}embeddings.position_embedding.weight", "vit/position_embedding")]
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        rules += _linear(f"{layer}.self_attn.{name}", f"vit/layers/{name}")
    for name in ("layer_norm1", "layer_norm2"):
        rules += _norm(f"{layer}.{name}", f"vit/layers/{name}")
    for name in ("fc1", "fc2"):
        rules += _linear(f"{layer}.mlp.{name}", f"vit/layers/{name}")
    return rules + _norm(f"{prefix}post_layernorm", "vit/post_layernorm")


BAGEL = (
    *_language_model("language_model.", {"und": "", "gen": "_moe_gen"}),
    *_linear("vae2llm", "latent_in"),
    *_linear("llm2vae", "latent_out"),
    *_linear("time_embedder.mlp.0", "time_in"),
    *_linear("time_embedder.mlp.2", "time_out"),
    *_vision_tower("vit_model.vision_model."),
    *_linear("connector.fc1", "connector/fc1"),
    *_linear("connector.fc2", "connector/fc2"),
)
BAGEL_TABLES = {"latent_pos_embed.pos_embed": "latent", "vit_pos_embed.pos_embed": "vit"}
"""Fixed tables, which a published checkpoint stores and this project computes."""
BAGEL_VIT = (r"vit_model\..*", r"connector\..*", r"vit_pos_embed\..*")
"""Names of the tensors of the ViT (first) and what belongs to it, as regular expressions."""

QWEN2 = tuple(_language_model("", {"und": "", "gen": ""}))
"""Every published tensor of a layer fills both experts."""

SIGLIP2 = tuple(_vision_tower("vision_model."))
SIGLIP2_CONV = tuple(_vision_tower("vision_model.", PATCHES))
"""The same with the patch embedding as a convolution; in `SIGLIP2` it is a matrix."""
SIGLIP2_IGNORED = (r"text_model\..*", r"vision_model\.head\..*", r"logit_(scale|bias)", r".*\.position_ids")
"""The text side and the pooling of a contrastive model, which nothing here uses."""


# ----------------------------------------------------------------- autoencoder


def _res_block(theirs: str, ours: str, shortcut: str) -> list[Rule]:
    rules = []
    for name in ("norm1", "norm2"):
        rules += _norm(f"{theirs}.{name}", f"{ours}/{name}")
    for name in ("conv1", "conv2"):
        rules += _linear(f"{theirs}.{name}", f"{ours}/{name}", turn=CONV)
    return rules + _linear(f"{theirs}.{shortcut}", f"{ours}/nin_shortcut", turn=POINTWISE)


def autoencoder(config: FluxConfig, diffusers: bool) -> list[Rule]:
    """The autoencoder under the names of FLUX.1, or of diffusers."""
    if diffusers:
        middle, attention = ("mid_block.resnets.0", "mid_block.resnets.1"), "mid_block.attentions.0"
        projections, group_norm = ("to_q", "to_k", "to_v", "to_out.0"), "group_norm"
        shortcut, norm_out, turn = "conv_shortcut", "conv_norm_out", LINEAR
    else:
        middle, attention = ("mid.block_1", "mid.block_2"), "mid.attn_1"
        projections, group_norm = ("q", "k", "v", "proj_out"), "norm"
        shortcut, norm_out, turn = "nin_shortcut", "norm_out", POINTWISE
    rules, levels = [], len(config.ch_mult)
    for side, group, resample, blocks in (
        ("encoder", "down", "downsample", config.res_blocks),
        ("decoder", "up", "upsample", config.res_blocks + 1),
    ):
        rules += _linear(f"{side}.conv_in", f"{side}/conv_in", turn=CONV)
        rules += _norm(f"{side}.{norm_out}", f"{side}/norm_out")
        rules += _linear(f"{side}.conv_out", f"{side}/conv_out", turn=CONV)
        for number, theirs in enumerate(middle, 1):
            rules += _res_block(f"{side}.{theirs}", f"{side}/mid/block_{number}", shortcut)
        rules += _norm(f"{side}.{attention}.{group_norm}", f"{side}/mid/attn_1/norm")
        for theirs, ours in zip(projections, ("q", "k", "v", "proj_out"), strict=True):
            rules += _linear(f"{side}.{attention}.{theirs}", f"{side}/mid/attn_1/{ours}", turn=turn)
        for level in range(levels):
            theirs, block, last = f"{side}.{group}.{level}", "block", f"{resample}.conv"
            if diffusers:  # diffusers counts the decoder's levels from the lowest resolution
                number = level if group == "down" else levels - 1 - level
                theirs, block, last = f"{side}.{group}_blocks.{number}", "resnets", f"{resample}rs.0.conv"
            ours = f"{side}/{group}_{level}"
            for index in range(blocks):
                rules += _res_block(f"{theirs}.{block}.{index}", f"{ours}/block_{index}", shortcut)
            rules += _linear(f"{theirs}.{last}", f"{ours}/{resample}", turn=CONV)
    return rules
