"""The tables of rules between published names and ours.

BAGEL    `ema.safetensors`: Qwen2 with two sets of weights, SigLIP 2, connector, latents and timesteps
QWEN2    a language model alone; its weights go to both experts, as BAGEL starts
SIGLIP2  a vision tower alone

The autoencoder's arrays have almost the names that FLUX.1 gives them: `FLUX` says what differs in
`ae.safetensors`, and `DIFFUSERS` what differs from it in diffusers' `AutoencoderKL`.
"""

from __future__ import annotations

from process_gen.checkpoints.published.rules import AS_IS, LINEAR, PATCHES, Rule, Turn


def _linear(theirs: str, ours: str, bias: bool = True, turn: Turn = LINEAR) -> list[Rule]:
    """A matrix and perhaps its bias."""
    return [Rule(f"{theirs}.weight", f"{ours}/kernel", turn), *_bias(theirs, ours, bias)]


def _norm(theirs: str, ours: str, bias: bool = True) -> list[Rule]:
    """A norm's scale and perhaps its bias."""
    return [Rule(f"{theirs}.weight", f"{ours}/scale", AS_IS), *_bias(theirs, ours, bias)]


def _bias(theirs: str, ours: str, there: bool) -> list[Rule]:
    return [Rule(f"{theirs}.bias", f"{ours}/bias", AS_IS)] if there else []


def _language_model(prefix: str, suffixes: dict[str, str]) -> list[Rule]:
    """A Qwen2 decoder with its embedding and head; `suffixes`: expert -> suffix of its published names."""
    rules = [
        Rule(f"{prefix}model.embed_tokens.weight", "embedding"),
        Rule(f"{prefix}lm_head.weight", "head/kernel", LINEAR),
    ]
    for expert, suffix in suffixes.items():
        theirs, ours = f"{prefix}model.layers.{{layer}}", f"backbone/layers/{expert}"
        for name in ("q_proj", "k_proj", "v_proj"):
            rules += _linear(f"{theirs}.self_attn.{name}{suffix}", f"{ours}/{name}")
        rules += _linear(f"{theirs}.self_attn.o_proj{suffix}", f"{ours}/o_proj", bias=False)
        for name in ("q_norm", "k_norm"):
            rules += _norm(f"{theirs}.self_attn.{name}{suffix}", f"{ours}/{name}", bias=False)
        for name in ("input", "post_attention"):
            rules += _norm(f"{theirs}.{name}_layernorm{suffix}", f"{ours}/{name}_norm", bias=False)
        for name in ("gate_proj", "up_proj", "down_proj"):
            rules += _linear(f"{theirs}.mlp{suffix}.{name}", f"{ours}/{name}", bias=False)
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


FLUX = (
    ("/", "."),
    (r"(kernel|scale)$", "weight"),
    (r"(down|up)_(\d+)", r"\1.\2"),
    (r"(\d)\.block_(\d+)", r"\1.block.\2"),
    (r"(down|up)sample", r"\1sample.conv"),
)
"""Our names of the autoencoder's arrays as those of FLUX.1: regular expressions and what replaces them."""
DIFFUSERS = (
    (r"mid\.block_1", "mid_block.resnets.0"),
    (r"mid\.block_2", "mid_block.resnets.1"),
    (r"mid\.attn_1", "mid_block.attentions.0"),
    (r"attentions\.0\.norm", "attentions.0.group_norm"),
    (r"attentions\.0\.([qkv])\.", r"attentions.0.to_\1."),
    (r"proj_out", "to_out.0"),
    (r"(down|up)\.(\d+)", r"\1_blocks.\2"),
    (r"(\d)\.block\.", r"\1.resnets."),
    (r"(down|up)sample\.conv", r"\1samplers.0.conv"),
    ("nin_shortcut", "conv_shortcut"),
    ("norm_out", "conv_norm_out"),
)
"""Names of FLUX.1 as those of diffusers."""
