"""Names and shapes of published files, from their description and not from the tables of the project."""

from __future__ import annotations

Shapes = dict[str, tuple[int, ...]]


def qwen2_layer(fields: dict, suffix: str = "", norms: bool = True) -> Shapes:
    """One set of weights of a decoder layer, without the layer's prefix."""
    d, mlp, heads = fields["hidden_size"], fields["intermediate_size"], fields["num_attention_heads"]
    head = d // heads
    kv = fields["num_key_value_heads"] * head
    shapes = {f"self_attn.q_proj{suffix}.weight": (d, d), f"self_attn.q_proj{suffix}.bias": (d,)}
    for name in ("k_proj", "v_proj"):
        shapes |= {f"self_attn.{name}{suffix}.weight": (kv, d), f"self_attn.{name}{suffix}.bias": (kv,)}
    shapes[f"self_attn.o_proj{suffix}.weight"] = (d, d)
    if norms:
        shapes |= {f"self_attn.{name}{suffix}.weight": (head,) for name in ("q_norm", "k_norm")}
    shapes |= {f"{n}_layernorm{suffix}.weight": (d,) for n in ("input", "post_attention")}
    shapes |= {f"mlp{suffix}.{name}.weight": (mlp, d) for name in ("gate_proj", "up_proj")}
    return shapes | {f"mlp{suffix}.down_proj.weight": (d, mlp)}


def vision_tower(fields: dict, prefix: str, layers: int, matrix: bool = True) -> Shapes:
    """A SigLIP 2 encoder up to its last norm."""
    d, mlp, side = fields["hidden_size"], fields["intermediate_size"], fields["patch_size"]
    linear = {f"self_attn.{n}_proj": (d, d) for n in ("q", "k", "v", "out")}
    linear |= {"mlp.fc1": (mlp, d), "mlp.fc2": (d, mlp)}
    shapes = {
        f"{prefix}embeddings.patch_embedding.weight": (d, side**2 * 3) if matrix else (d, 3, side, side),
        f"{prefix}embeddings.patch_embedding.bias": (d,),
        f"{prefix}embeddings.position_embedding.weight": ((fields["image_size"] // side) ** 2, d),
    }
    for i in range(layers):
        layer = f"{prefix}encoder.layers.{i}."
        for name, shape in linear.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
        for name in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}{name}.weight": (d,), f"{layer}{name}.bias": (d,)}
    for end in ("weight", "bias"):
        shapes[f"{prefix}post_layernorm.{end}"] = (d,)
    return shapes


def bagel(llm: dict, vit: dict, config: dict, channels: int) -> Shapes:
    """`ema.safetensors`."""
    d, vocabulary, width = llm["hidden_size"], llm["vocab_size"], vit["hidden_size"]
    values = config["latent_patch_size"] ** 2 * channels
    language = "language_model.model."
    shapes = {
        f"{language}embed_tokens.weight": (vocabulary, d),
        "language_model.lm_head.weight": (vocabulary, d),
        f"{language}norm.weight": (d,),
        f"{language}norm_moe_gen.weight": (d,),
        "vae2llm.weight": (d, values),
        "vae2llm.bias": (d,),
        "llm2vae.weight": (values, d),
        "llm2vae.bias": (values,),
        "time_embedder.mlp.0.weight": (d, 256),
        "time_embedder.mlp.0.bias": (d,),
        "time_embedder.mlp.2.weight": (d, d),
        "time_embedder.mlp.2.bias": (d,),
        "latent_pos_embed.pos_embed": (config["max_latent_size"] ** 2, d),
        "vit_pos_embed.pos_embed": (config["vit_max_num_patch_per_side"] ** 2, d),
        "connector.fc1.weight": (d, width),
        "connector.fc1.bias": (d,),
        "connector.fc2.weight": (d, d),
        "connector.fc2.bias": (d,),
    }
    for i in range(llm["num_hidden_layers"]):
        for suffix in ("", "_moe_gen"):
            shapes |= {f"{language}layers.{i}.{n}": s for n, s in qwen2_layer(llm, suffix).items()}
    return shapes | vision_tower(vit, "vit_model.vision_model.", vit["num_hidden_layers"] - 1)


def qwen2(fields: dict) -> Shapes:
    """A language model alone."""
    d, vocabulary = fields["hidden_size"], fields["vocab_size"]
    shapes = {"model.embed_tokens.weight": (vocabulary, d), "model.norm.weight": (d,)}
    if not fields.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (vocabulary, d)
    for i in range(fields["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.{n}": s for n, s in qwen2_layer(fields, norms=False).items()}
    return shapes


def _conv(name: str, inputs: int, outputs: int, size: int = 3) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, size, size), f"{name}.bias": (outputs,)}


def _norm(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _block(name: str, inputs: int, outputs: int) -> Shapes:
    shapes = _norm(f"{name}.norm1", inputs) | _conv(f"{name}.conv1", inputs, outputs)
    shapes |= _norm(f"{name}.norm2", outputs) | _conv(f"{name}.conv2", outputs, outputs)
    return shapes | (_conv(f"{name}.nin_shortcut", inputs, outputs, 1) if inputs != outputs else {})


def flux(vae: dict) -> Shapes:
    """`ae.safetensors`."""
    widths = [vae["ch"] * mult for mult in vae["ch_mult"]]
    levels, z = len(widths), vae["z_channels"]
    shapes = _conv("encoder.conv_in", vae["in_channels"], vae["ch"])
    width = vae["ch"]
    for i, after in enumerate(widths):
        for j in range(vae["num_res_blocks"]):
            shapes |= _block(f"encoder.down.{i}.block.{j}", width, after)
            width = after
        if i < levels - 1:
            shapes |= _conv(f"encoder.down.{i}.downsample.conv", width, width)
    shapes |= _norm("encoder.norm_out", width) | _conv("encoder.conv_out", width, 2 * z)
    shapes |= _conv("decoder.conv_in", z, width)
    for side in ("encoder", "decoder"):
        for name in ("block_1", "block_2"):
            shapes |= _block(f"{side}.mid.{name}", widths[-1], widths[-1])
        shapes |= _norm(f"{side}.mid.attn_1.norm", widths[-1])
        for name in ("q", "k", "v", "proj_out"):
            shapes |= _conv(f"{side}.mid.attn_1.{name}", widths[-1], widths[-1], 1)
    for i in reversed(range(levels)):
        for j in range(vae["num_res_blocks"] + 1):
            shapes |= _block(f"decoder.up.{i}.block.{j}", width, widths[i])
            width = widths[i]
        if i:
            shapes |= _conv(f"decoder.up.{i}.upsample.conv", width, width)
    return shapes | _norm("decoder.norm_out", width) | _conv("decoder.conv_out", width, vae["out_ch"])


# The published checkpoint's JSON files, as far as they give sizes.
LLM_7B = dict(
    hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
    num_key_value_heads=4, vocab_size=152064, rms_norm_eps=1e-6, rope_theta=1e6, hidden_act="silu",
    model_type="qwen2", tie_word_embeddings=False,
)  # fmt: skip
VIT_7B = dict(
    hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, num_channels=3,
    image_size=980, patch_size=14, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6,
)  # fmt: skip
CONFIG_7B = dict(latent_patch_size=2, max_latent_size=64, vit_max_num_patch_per_side=70)
FLUX_1 = dict(
    ch=128, ch_mult=[1, 2, 4, 4], num_res_blocks=2, z_channels=16, in_channels=3, out_ch=3,
)  # fmt: skip
