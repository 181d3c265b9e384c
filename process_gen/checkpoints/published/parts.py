"""Parts that are published alone: a Qwen2 language model, a SigLIP 2 tower, and a model started from them.

BAGEL begins so: both experts take the weights of the language model, the tower comes without its last layer,
and what nobody has published (latents, timesteps, connector, norms of queries and keys) starts fresh.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from process_gen.checkpoints.errors import CheckpointMismatch, CheckpointNotFound
from process_gen.checkpoints.published import configs, rules, sources, tables, tensors, writing
from process_gen.checkpoints.published.bagel import DTYPE, autoencoder_pieces, model_shapes, source_of
from process_gen.checkpoints.published.flux import AutoencoderFiles, moves_of, write_diffusers_config
from process_gen.checkpoints.published.pieces import Pieces, Progress, to_host
from process_gen.models.config import FluxConfig, ModelConfig, VitConfig
from process_gen.models.spec import initial

_STEMS = ("model",)
_QK_NORM = r"backbone/layers/(und|gen)/[qk]_norm/scale"


@dataclasses.dataclass(frozen=True)
class Part:
    """Weights of one part, and what they say of the sizes.

    Attributes:
      sizes: fields of `ModelConfig`.
      tensors: by published name.
      rules: what they fill.
      ignored: names that may be there besides.
    """

    sizes: Mapping[str, Any]
    tensors: tensors.Tensors
    rules: tuple[rules.Rule, ...]
    ignored: tuple[str, ...] = ()

    def pieces(self, spec: rules.Spec, dtype: str | None = DTYPE) -> Pieces:
        """Those arrays of a model that this part fills.

        Raises:
          CheckpointMismatch: names or shapes differ.
        """
        filled = {rule.ours for rule in self.rules}
        mine = {name: shape for name, shape in spec.items() if name in filled}
        moves = rules.expand(self.rules, mine)
        found = {name: entry.shape for name, entry in self.tensors.items()}
        rules.check(moves, found, self.tensors.place, self.ignored)
        return Pieces(moves, self.tensors, mine, dtype)


def read_qwen2(folder: epath.PathLike) -> Part:
    """A Qwen2 language model (or a Qwen3, which has norms of queries and keys of its own).

    Raises:
      CheckpointNotFound, CheckpointCorrupt, CheckpointMismatch: see `read_published`.
    """
    fields, found = _read(folder)
    read = configs.Reader("config.json", fields)
    read.only("model_type", "qwen2", "qwen3")
    sizes = configs.language_model(fields, "model.layers.0.self_attn.q_proj.bias" in found, "config.json")
    used = tables.QWEN2
    if "model.layers.0.self_attn.q_norm.weight" not in found:
        used = tuple(rule for rule in used if not re.fullmatch(_QK_NORM, rule.ours))
    if "lm_head.weight" not in found and fields.get("tie_word_embeddings"):
        tied = rules.Rule("model.embed_tokens.weight", "head/kernel", rules.LINEAR)
        used = tuple(tied if rule.ours == "head/kernel" else rule for rule in used)
    return Part(sizes, found, used, (r".*rotary_emb\.inv_freq",))


def read_siglip2(folder: epath.PathLike) -> Part:
    """A SigLIP 2 vision tower, alone or in its contrastive model.

    Raises:
      CheckpointNotFound, CheckpointCorrupt, CheckpointMismatch: see `read_published`.
    """
    fields, found = _read(folder)
    fields = fields.get("vision_config", fields)
    shapes = {name: entry.shape for name, entry in found.items()}
    vit = configs.vision_tower(fields, shapes, "vision_model.", 0, "config.json")
    matrix = len(shapes["vision_model.embeddings.patch_embedding.weight"]) == 2
    last = rf"vision_model\.encoder\.layers\.{vit.layers}\..*"
    used = tables.SIGLIP2 if matrix else tables.SIGLIP2_CONV
    return Part({"vit": vit}, found, used, (*tables.SIGLIP2_IGNORED, last))


def _read(folder: epath.PathLike) -> tuple[configs.Json, tensors.Tensors]:
    folder = epath.Path(folder)
    if not folder.is_dir():
        raise CheckpointNotFound(f"no such folder of published weights: {folder}")
    found = tensors.find(folder, _STEMS)
    if found is None:
        raise CheckpointNotFound(f"{folder} holds no model.safetensors, alone or in shards")
    return configs.read_json(folder / "config.json"), found


# -------------------------------------------------------------------------- in


def import_part(part: Part, dtype: str | None = DTYPE) -> dict[str, Any]:
    """The arrays that one part fills, as a nested dict: both experts of a language model, or `vit`."""
    return to_host(part.pieces(model_shapes(sizes_of(part)), dtype))


def sizes_of(part: Part) -> ModelConfig:
    """The sizes of a model with this part; a tower alone gets the smallest backbone that there is."""
    smallest = dict(vocab_size=1, width=4, layers=1, mlp=1, heads=1, kv_heads=1, head_dim=4)
    return ModelConfig(**smallest | dict(part.sizes))


@dataclasses.dataclass(frozen=True)
class Start:
    """A model put together from parts.

    Attributes:
      model: its sizes.
      source: its parameters, to be read box by box.
      autoencoder: the same for the autoencoder's, None without one.
    """

    model: ModelConfig
    source: sources.Source
    autoencoder: Pieces | None


def start(
    language_model: Part,
    vision: Part | None = None,
    autoencoder: AutoencoderFiles | None = None,
    *,
    seed: int = 0,
    dtype: str = DTYPE,
    latent_patch: int = 2,
    max_latent_side: int = 64,
) -> Start:
    """A model whose parts are published, before any training of the whole.

    Args:
      language_model: from `read_qwen2`.
      vision: from `read_siglip2`; without one the model has no ViT.
      autoencoder: from `read_autoencoder`; FLUX.1's sizes without one.
      seed: of what starts fresh.
      dtype: of the parameters.
      latent_patch, max_latent_side: of the latent tokens.

    Raises:
      CheckpointMismatch: names or shapes differ.
    """
    model = ModelConfig(
        **language_model.sizes,
        **(vision.sizes if vision else {}),
        latent_patch=latent_patch,
        max_latent_side=max_latent_side,
        autoencoder="flux",
        flux=autoencoder.config if autoencoder else FluxConfig(),
    )
    spec = model_shapes(model)
    made = [part.pieces(spec, dtype) for part in (language_model, vision) if part]
    fresh = spec.keys() - {name for pieces in made for name in pieces.spec}
    made.append(sources.TreeArrays(initial(model, frozenset(fresh), seed, dtype)))
    coder = autoencoder_pieces(autoencoder, dtype) if autoencoder else None
    return Start(model, sources.Joined(made), coder)


# ------------------------------------------------------------------------- out


def export_qwen2(
    params: Any, model: ModelConfig, folder: epath.PathLike, dtype: str | None = None, **options: Any
) -> None:
    """Writes the `und` expert as a Qwen2 language model.

    Args:
      params: a tree or a `sources.Source`.
      model: their sizes.
      folder: made if need be.
      dtype: of the tensors; None leaves them as they are.
      **options: `largest` and `progress` of `writing.write`.

    Raises:
      CheckpointMismatch: norms of queries and keys are trained, and Qwen2 has none.
    """
    source = source_of(params)
    for name in (name for name in source.spec if re.fullmatch(_QK_NORM.replace("und|gen", "und"), name)):
        if not (source.read(name).astype(np.float32) == 1).all():
            raise CheckpointMismatch(
                f"{name} is trained, and Qwen2 has no norms of queries and keys: export a BAGEL"
            )
    kept = {name: shape for name, shape in source.spec.items() if not re.fullmatch(_QK_NORM, name)}
    mine = {name: kept[name] for name in {rule.ours for rule in tables.QWEN2} & kept.keys()}
    moves = rules.expand(tables.QWEN2, mine)
    writing.write(folder, "model", sources.items(moves, source, dtype), **options)
    fields = configs.write(model)["llm_config.json"]
    drop = ("layer_module", "qk_norm")
    fields = {"architectures": ["Qwen2ForCausalLM"], **{k: v for k, v in fields.items() if k not in drop}}
    (epath.Path(folder) / "config.json").write_text(json.dumps(fields, indent=1))


def export_siglip2(
    params: Any, vit: VitConfig, folder: epath.PathLike, dtype: str | None = None, **options: Any
) -> None:
    """Writes the tower alone, with its patch embedding as a convolution; see `export_qwen2`.

    Raises:
      CheckpointMismatch: the parameters have no ViT.
    """
    source = source_of(params)
    mine = {name: shape for name, shape in source.spec.items() if name.startswith("vit/")}
    if not mine:
        raise CheckpointMismatch("these parameters have no ViT that could be exported")
    moves = rules.expand(tables.SIGLIP2_CONV, mine)
    writing.write(folder, "model", sources.items(moves, source, dtype), **options)
    fields = {
        "architectures": ["SiglipVisionModel"],
        **configs.write_vision_tower(vit),
        "num_hidden_layers": vit.layers,
        configs.SHORT: True,
        "vision_use_head": False,
    }
    (epath.Path(folder) / "config.json").write_text(json.dumps(fields, indent=1))


def import_autoencoder(
    files: AutoencoderFiles, dtype: str | None = DTYPE, progress: Progress | None = None
) -> dict[str, Any]:
    """The parameters of `FluxAutoencoder` from a file in either naming."""
    return to_host(autoencoder_pieces(files, dtype), progress)


def export_autoencoder(
    params: Any,
    config: FluxConfig,
    folder: epath.PathLike,
    naming: str = "flux",
    dtype: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes `ae.safetensors`, or diffusers' `diffusion_pytorch_model.safetensors` and `config.json`."""
    source = source_of(params)
    moves = moves_of(config, source.spec, naming)
    stem = {"flux": "ae", "diffusers": "diffusion_pytorch_model"}[naming]
    writing.write(folder, stem, sources.items(moves, source, dtype), progress=progress)
    if naming == "diffusers":
        text = json.dumps(write_diffusers_config(config), indent=1)
        (epath.Path(folder) / "config.json").write_text(text)
