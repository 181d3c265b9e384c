"""Parts that are published alone: a Qwen2 language model, a SigLIP 2 tower, and a model started from them.

BAGEL begins so: both experts take the weights of the language model, the tower comes without its last layer,
and what nobody has published (latents, timesteps, connector, norms of queries and keys) is initialized.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from process_gen.checkpoints.errors import CheckpointMismatch
from process_gen.checkpoints.published import configs, rules, sources, tables, tensors
from process_gen.checkpoints.published.bagel import model_shapes
from process_gen.common.files import write_json
from process_gen.models.config import FluxConfig, ModelConfig, VitConfig
from process_gen.models.spec import initial

_QK_NORM = r"backbone/layers/(und|gen)/[qk]_norm/scale"


@dataclasses.dataclass(frozen=True)
class Part:
    """Tensors of one part, the fields of `ModelConfig` that they determine (`sizes`), and their rules.

    `ignored` are regular expressions of the names of tensors that may be there besides.
    """

    sizes: Mapping[str, Any]
    tensors: tensors.Tensors
    rules: tuple[rules.Rule, ...]
    ignored: tuple[str, ...] = ()

    def pieces(self, model: ModelConfig) -> sources.Pieces:
        """Those arrays of a model that this part fills; see `Pieces`."""
        filled = {rule.ours for rule in self.rules}
        spec = {name: shape for name, shape in model_shapes(model).items() if name in filled}
        return sources.Pieces(rules.expand(self.rules, spec), self.tensors, spec, self.ignored)


def read_qwen2(folder: epath.PathLike) -> Part:
    """A Qwen2 language model, or a Qwen3, which has norms of queries and keys; raises as `read_published`."""
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
    """A SigLIP 2 vision tower, alone or in its contrastive model; raises as `read_published`."""
    fields, found = _read(folder)
    fields = fields.get("vision_config", fields)
    vit = configs.vision_tower(fields, found.shapes, "vision_model.", 0, "config.json")
    matrix = len(found.shapes["vision_model.embeddings.patch_embedding.weight"]) == 2
    last = rf"vision_model\.encoder\.layers\.{vit.layers}\..*"
    used = tables.SIGLIP2 if matrix else tables.SIGLIP2_CONV
    return Part({"vit": vit}, found, used, (*tables.SIGLIP2_IGNORED, last))


def _read(folder: epath.PathLike) -> tuple[configs.Json, tensors.Tensors]:
    found = tensors.find_in(folder, ("model",))
    return configs.read_json(epath.Path(folder) / "config.json"), found


# -------------------------------------------------------------------------- in


def model_of(language_model: Part, vision: Part | None, flux: FluxConfig | None) -> ModelConfig:
    """The sizes of a model of these parts, with those of FLUX.1's autoencoder where `flux` is None."""
    towers = vision.sizes if vision else {}
    with configs.sizes_of("the parts"):
        return ModelConfig(**language_model.sizes, **towers, autoencoder="flux", flux=flux or FluxConfig())


def start(model: ModelConfig, language_model: Part, vision: Part | None, seed: int = 0) -> sources.Source:
    """The initial parameters of such a model, float32: those of its parts, and others drawn with `seed`."""
    made: list[sources.Source] = [part.pieces(model) for part in (language_model, vision) if part]
    fresh = model_shapes(model).keys() - {name for pieces in made for name in pieces.spec}
    made.append(sources.TreeArrays(initial(model, frozenset(fresh), seed)))
    return sources.Joined(*made).in_dtype("float32")


def tower_of(part: Part) -> ModelConfig:
    """The sizes for a vision tower alone: those of a model with the smallest possible backbone."""
    smallest = dict(vocab_size=1, width=4, layers=1, mlp=1, heads=1, kv_heads=1, head_dim=4)
    return ModelConfig(**smallest, **part.sizes)


# ------------------------------------------------------------------------- out


def export_qwen2(params: Any, model: ModelConfig, folder: epath.PathLike, **options: Any) -> None:
    """Writes the `und` expert as a Qwen2 language model; see `export_bagel`.

    Raises CheckpointMismatch where norms of queries and keys are trained: Qwen2 has none.
    """
    source = sources.source_of(params)
    for name in (name for name in source.spec if re.fullmatch(_QK_NORM.replace("und|gen", "und"), name)):
        if not (source.read(name).astype(np.float32) == 1).all():
            raise CheckpointMismatch(
                f"{name} is trained, and Qwen2 has no norms of queries and keys: export a BAGEL"
            )
    filled = {rule.ours for rule in tables.QWEN2 if not re.fullmatch(_QK_NORM, rule.ours)}
    moves = rules.expand(tables.QWEN2, {name: source.spec[name] for name in filled & source.spec.keys()})
    tensors.write(folder, "model", sources.items(moves, source), **options)
    fields = {"architectures": ["Qwen2ForCausalLM"], **configs.write_language_model(model)}
    write_json(epath.Path(folder) / "config.json", fields, indent=1)


def export_siglip2(params: Any, vit: VitConfig, folder: epath.PathLike, **options: Any) -> None:
    """Writes the tower alone, with its patch embedding as a convolution; see `export_qwen2`."""
    source = sources.source_of(params)
    mine = {name: shape for name, shape in source.spec.items() if name.startswith("vit/")}
    if not mine:
        raise CheckpointMismatch("these parameters have no ViT that could be exported")
    moves = rules.expand(tables.SIGLIP2_CONV, mine)
    tensors.write(folder, "model", sources.items(moves, source), **options)
    fields = {
        "architectures": ["SiglipVisionModel"],
        **configs.write_vision_tower(vit),
        "num_hidden_layers": vit.layers,
        configs.SHORT: True,
        "vision_use_head": False,
    }
    write_json(epath.Path(folder) / "config.json", fields, indent=1)
