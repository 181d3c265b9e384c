"""Computes the answers that a golden folder stores, and compares them with the stored ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.checkpoints.published import sources
from process_gen.checkpoints.published.bagel import bagel_moves
from process_gen.losses import LossTable
from process_gen.models import autoencoder, vit
from process_gen.models.autoencoder import latent_shape
from process_gen.models.config import ModelConfig
from process_gen.models.content import prompt_inputs
from process_gen.models.flux import FluxAutoencoder
from process_gen.models.positions import table_rows
from process_gen.models.unified import UnifiedModel
from process_gen.models.unroll import make_outputs, run_turns
from process_gen.parity.golden import Golden, jit_once
from process_gen.parity.inference import inference_answers
from process_gen.parity.row import Row, latent_tokens, layout_of, training_row

GIVEN = (
    "ae_image", "vit_image",
    "train_text_ids", "train_text_indexes", "train_ce_indexes", "train_ce_labels", "train_vae_images",
    "train_vae_indexes", "train_timestep_logits", "train_mse_indexes", "train_noise", "train_vit_images",
    "train_vit_indexes", "train_sample_lens",
    "inf_prompt", "inf_instruction", "inf_image", "inf_vit_image", "flow_noise",
)  # fmt: skip
"""Keys of the inputs of the published program; `train_splits_N` and `train_modes_N` are inputs too."""
GRADIENT = "grad/"


class Entry(NamedTuple):
    """One array of `golden.npz` with its relative error, ||a - b|| / ||b||, as `distance` gives it."""

    name: str
    shape: tuple[int, ...]
    error: float


def distance(ours: np.ndarray, stored: np.ndarray) -> float:
    """The relative error of an array; infinite where shapes or whole numbers differ, or one is not finite."""
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

    `frozen` are the autoencoder's weights. Groups of keys (by prefix) of which none is stored are not
    computed. A key that is neither an input nor anything that is computed here has an infinite error.
    """

    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in golden.arrays)

    found: dict[str, np.ndarray] = {}
    with jax.default_matmul_precision("highest"):
        if has("ae_"):
            found |= autoencoder_answers(golden, config, frozen)
        if has("inf_"):
            found |= inference_answers(golden, config, params, frozen)
        if has("train_"):
            found |= training_answers(golden, config, params, timestep_shift)
            found |= _latent_answers(golden, config, frozen)
        if has("vit_") and config.vit is not None:
            found |= vit_answers(golden, config, params)
    missing = np.full((1,), np.nan)
    return [
        Entry(name, stored.shape, distance(found.get(name, missing), stored))
        for name, stored in golden.arrays.items()
        if not is_given(name)
    ]


def _latent_answers(golden: Golden, config: ModelConfig, frozen: Any) -> dict[str, np.ndarray]:
    """Latents [images, C, h, w] and their places of the images in the packed row."""
    stored = golden.optional("train_latents")
    if not golden.optional("train_vae_images").size:  # a row of texts and ViT images alone
        return {"train_latents": np.zeros_like(stored[:0]), "train_vae_position_ids": np.zeros(0, np.int64)}
    stored = golden["train_latents"]  # or it raises
    images = jnp.moveaxis(jnp.asarray(golden["train_vae_images"]), 1, -1)
    tokens = jit_once(lambda frozen: autoencoder.to_tokens(config, images, frozen))(frozen)
    order = latent_tokens(config, np.arange(stored.size).reshape(stored.shape))  # where each value goes
    latents = np.empty(stored.size, np.float32)
    latents[order.reshape(-1)] = np.asarray(tokens).reshape(-1)
    grid, _ = latent_shape(config, golden.size("train_vae_images", "image_hw"))
    places = np.tile(table_rows(grid, config.max_latent_side), len(images))
    return {"train_latents": latents.reshape(stored.shape), "train_vae_position_ids": places}


def autoencoder_answers(golden: Golden, config: ModelConfig, frozen: Any) -> dict[str, np.ndarray]:
    """Moments [2 C, h, w], latent [C, h, w] and decoded image [3, H, W] of `ae_image`, by key."""
    module, image = FluxAutoencoder(config.flux), jnp.moveaxis(jnp.asarray(golden["ae_image"]), 0, -1)[None]

    @jit_once
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
    """Patches [P, U], position ids [P], ViT features and backbone tokens of `vit_image`, by key."""
    layout = layout_of(golden, config, "ae_image", "vit_image")
    image = jnp.moveaxis(jnp.asarray(golden["vit_image"]), 0, -1)[None]

    @jit_once
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


# --------------------------------------------------------------------- packed row


def published_losses(ce_weight: float, mse_weight: float) -> LossTable:
    """The published loss as rows of the table: one mean over all texts, one over all flow targets."""
    text, image = dict(weight=ce_weight, pool="text"), dict(weight=mse_weight, pool="image")
    return LossTable(
        {
            "plan_text": dict(loss="text_cross_entropy", stage="plan", **text),
            "plan_decision": dict(loss="decision_cross_entropy", stage="plan", **text),
            "sketch_decision": dict(loss="decision_cross_entropy", stage="sketch", **text),
            "sketch_flow": dict(loss="flow_mse", stage="sketch", **image),
        }
    )


def training_answers(
    golden: Golden, config: ModelConfig, params: Any, timestep_shift: float = 1.0, order: str = "layers"
) -> dict[str, np.ndarray]:
    """The answers for the packed row under the published keys, with the gradients that are stored.

    Only the order `layers` gives hidden states and positions of all tokens: `scan` keeps only
    those that losses read.
    """
    row = training_row(golden, config, timestep_shift)
    model = UnifiedModel(config, row.layout, golden.ids)
    table = published_losses(golden.setting("ce_weight"), golden.setting("mse_weight"))
    labels = {name: jnp.asarray(x) for name, x in row.labels.items()}
    batch, prompts = row.batch, prompt_inputs(row.batch.prompt_tokens)

    def loss(params):
        if order == "layers":
            rows = (prompts, row.turns, batch.prompt_index, batch.is_first, batch.refines)
            (end, turns), seen = model.apply(
                {"params": params}, *rows, method="forward_rows", mutable=["trace"]
            )
            traced = {name: found for name, (found,) in seen["trace"].items()}
        else:
            end, turns = run_turns(model, params, batch, prompts, row.turns, order)
            traced = {}
        outputs = make_outputs(model, params, end, turns, row.flows)
        sums, counts = table.terms(outputs, batch, labels, jax.random.key(0))
        values = {name: outputs.cross_entropy(name, labels) for name in {name for name, _ in row.targets}}
        error = jnp.square(outputs.velocity - outputs.target)
        return table.total(sums, counts), (values, error, traced)

    compute = jit_once(jax.value_and_grad(loss, has_aux=True))
    (total, (values, error, traced)), gradients = jax.device_get(compute(params))
    answers = {
        "train_ce": np.array([values[name][at] for name, at in row.targets]),
        "train_mse": error[:, :, 0][row.flows["has_target"]].reshape(-1, error.shape[-1]),
        "train_loss": total,
    }
    if traced:
        answers["train_hidden"] = _of_tokens(row, {name: x["hidden"] for name, x in traced.items()})
        answers["train_position_ids"] = _of_tokens(row, {name: x["positions"] for name, x in traced.items()})
    moves = [move for move in bagel_moves(config) if GRADIENT + move.theirs in golden.arrays]
    items = sources.items(moves, sources.TreeArrays(gradients))  # by the rules that convert weights
    return answers | {GRADIENT + item.name: np.concatenate(list(item.blocks())) for item in items}


def _of_tokens(row: Row, traced: dict[str, dict[str, np.ndarray]]) -> np.ndarray:
    """Reorders what was traced by chunk and stream, [slots, tokens, ...], to the published row, [L, ...]."""
    whole = {
        chunk: np.concatenate([streams[name] for name in ("und", "gen") if name in streams], axis=1)
        for chunk, streams in traced.items()
    }
    return np.stack([whole[chunk][slot, at] for chunk, slot, at in row.places])
