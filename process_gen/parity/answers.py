"""Every entry of a golden folder: computed, compared, and put into a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.checkpoints.published import sources
from process_gen.checkpoints.published.bagel import bagel_moves
from process_gen.models import autoencoder, vit
from process_gen.models.autoencoder import latent_shape
from process_gen.models.config import ModelConfig
from process_gen.models.flux import FluxAutoencoder
from process_gen.models.positions import table_rows
from process_gen.parity.golden import Golden, once
from process_gen.parity.inference import inference_answers
from process_gen.parity.row import latent_tokens, layout_of
from process_gen.parity.training import training_answers

GIVEN = (
    "ae_image", "vit_image",
    "train_text_ids", "train_text_indexes", "train_ce_indexes", "train_ce_labels", "train_vae_images",
    "train_vae_indexes", "train_timestep_logits", "train_mse_indexes", "train_noise", "train_vit_images",
    "train_vit_indexes", "train_sample_lens",
    "inf_prompt", "inf_instruction", "inf_image", "inf_vit_image", "flow_noise",
)  # fmt: skip
"""What the published program was given, by key; `train_splits_N` and `train_modes_N` besides."""
GRADIENT = "grad/"


class Entry(NamedTuple):
    """One compared entry.

    Attributes:
      name: its key in `golden.npz`.
      shape: of the stored array.
      error: relative, ||a - b|| / ||b||; for whole numbers 0 where all are equal, else infinite.
    """

    name: str
    shape: tuple[int, ...]
    error: float


def distance(ours: np.ndarray, stored: np.ndarray) -> float:
    """The relative error of an array; infinite where shapes differ or a value is not finite."""
    ours = np.asarray(ours)
    if ours.shape != stored.shape:
        return float("inf")
    if np.issubdtype(stored.dtype, np.integer):
        return 0.0 if np.array_equal(ours, stored) else float("inf")
    ours, stored = ours.astype(np.float64), stored.astype(np.float64)
    error, size = float(np.linalg.norm(ours - stored)), float(np.linalg.norm(stored))
    if not np.isfinite(error):
        return float("inf")
    return error / size if size else error


def is_given(name: str) -> bool:
    """Whether a key is an input."""
    return name in GIVEN or name.startswith(("train_splits_", "train_modes_"))


def compare(
    golden: Golden, config: ModelConfig, params: Any, frozen: Any, timestep_shift: float = 1.0
) -> list[Entry]:
    """Every answer of `golden.npz` with its relative error, in the order of the file.

    `frozen` are the autoencoder's weights. A key that is neither an input nor anything that is computed here
    has an infinite error.
    """
    with jax.default_matmul_precision("highest"):
        found = answers(golden, config, params, frozen, timestep_shift)
    missing = np.full((1,), np.nan)
    return [
        Entry(name, stored.shape, distance(found.get(name, missing), stored))
        for name, stored in golden.arrays.items()
        if not is_given(name)
    ]


def answers(
    golden: Golden, config: ModelConfig, params: Any, frozen: Any, timestep_shift: float = 1.0
) -> dict[str, np.ndarray]:
    """Everything that is asked for, by key; what nothing is stored of is left out."""
    parts: list[tuple[str, Callable[[], Mapping[str, np.ndarray]]]] = [
        ("ae_", lambda: autoencoder_answers(golden, config, frozen)),
        ("inf_", lambda: inference_answers(golden, config, params, frozen)),
        ("train_", lambda: _training(golden, config, params, frozen, timestep_shift)),
    ]
    if config.vit is not None:
        parts.append(("vit_", lambda: vit_answers(golden, config, params)))
    found: dict[str, np.ndarray] = {}
    for prefix, compute in parts:
        if any(name.startswith(prefix) for name in golden.arrays):
            found |= compute()
    return found


def _training(
    golden: Golden, config: ModelConfig, params: Any, frozen: Any, timestep_shift: float
) -> dict[str, np.ndarray]:
    found, gradients = training_answers(golden, config, params, timestep_shift)
    found |= stored_gradients(golden, config, gradients)
    if not golden.optional("train_vae_images", (0,)).size:  # a row of texts and of what the ViT sees
        none = np.zeros_like(golden.optional("train_latents", (0,))[:0])
        return found | {"train_latents": none, "train_vae_position_ids": np.zeros(0, np.int64)}
    images = jnp.moveaxis(jnp.asarray(golden["train_vae_images"]), 1, -1)
    tokens = once(lambda frozen: autoencoder.to_tokens(config, images, frozen))(frozen)
    found["train_latents"] = _as_latents(golden, config, tokens)
    grid, _ = latent_shape(config, golden.size("train_vae_images", "image_hw"))
    found["train_vae_position_ids"] = np.tile(table_rows(grid, config.max_latent_side), len(images))
    return found


def stored_gradients(golden: Golden, config: ModelConfig, gradients: Any) -> dict[str, np.ndarray]:
    """The stored gradients, cut out of ours by the rules that move weights."""
    source = sources.TreeArrays(gradients)
    moves = {move.theirs: move for move in bagel_moves(config)}
    found = {}
    for name in (name for name in golden.arrays if name.startswith(GRADIENT)):
        if move := moves.get(name.removeprefix(GRADIENT)):
            array = source.read(move.ours)
            found[name] = move.give(array if move.layer is None else array[move.layer])
    return found


def _as_latents(golden: Golden, config: ModelConfig, tokens: jax.Array) -> np.ndarray:
    """Tokens [..., N, V] in the stored order [..., C, h, w]: whoever sorts twice compares both ways."""
    shape = golden["train_latents"].shape
    order = latent_tokens(config, np.arange(np.prod(shape)).reshape(shape))
    flat = np.empty(int(np.prod(shape)), np.float32)
    flat[order.reshape(-1)] = np.asarray(tokens).reshape(-1)
    return flat.reshape(shape)


def autoencoder_answers(golden: Golden, config: ModelConfig, frozen: Any) -> dict[str, np.ndarray]:
    """The autoencoder's entries."""
    module, image = FluxAutoencoder(config.flux), jnp.moveaxis(jnp.asarray(golden["ae_image"]), 0, -1)[None]

    @once
    def compute(frozen):
        variables = {"params": frozen}
        latent = module.apply(variables, image, method="encode")
        return {
            "ae_moments": module.apply(variables, image, method="moments"),
            "ae_latent": latent,
            "ae_decoded": module.apply(variables, latent, method="decode"),
        }

    return {name: np.moveaxis(np.asarray(x[0]), -1, 0) for name, x in compute(frozen).items()}


def vit_answers(golden: Golden, config: ModelConfig, params: Any) -> dict[str, np.ndarray]:
    """The entries of the ViT and its connector."""
    layout = layout_of(golden, config, "ae_image", "vit_image")
    image = jnp.moveaxis(jnp.asarray(golden["vit_image"]), 0, -1)[None]

    @once
    def compute(tower, connector):
        patches = vit.patches_of(config, layout, image)
        features = vit.Vit(config, layout.vit_grid).apply({"params": tower}, patches)
        tokens = vit.Connector(config, layout.vit_grid).apply({"params": connector}, features)
        return patches, features, tokens

    patches, features, tokens = compute(params["vit"], params["connector"])
    return {
        "vit_patches": np.asarray(patches[0]),
        "vit_position_ids": table_rows(layout.vit_grid, config.vit.max_side),
        "vit_features": np.asarray(features[0], np.float32),
        "vit_connected": np.asarray(tokens[0], np.float32),
    }
