"""Makes a folder of known answers: a random BAGEL of any size, and what `reference` computes with it."""

from __future__ import annotations

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from process_gen.parity.golden import jit_once
from tests.checkpoints.published.conftest import write_fake
from tests.parity.reference import Reference, Segment, grid_ids

IDS = dict(bos_token_id=0, eos_token_id=3, start_of_image=1, end_of_image=7)
FLOW = dict(num_timesteps=6, timestep_shift=2.0, cfg_interval=[0.3, 0.9], cfg_renorm_min=0.1)
GUIDANCES = {
    "noguide": (1.0, 1.0, ""),
    "textglobal": (4.0, 1.0, "global"),
    "bothglobal": (4.0, 1.5, "global"),
    "bothchannel": (4.0, 1.5, "channel"),
    "textchannel": (4.0, 2.0, "text_channel"),
}
GRADIENTS = (
    "language_model.model.layers.1.self_attn.k_proj.bias",
    "language_model.model.layers.0.mlp_moe_gen.gate_proj.weight",
    "language_model.model.embed_tokens.weight",
    "time_embedder.mlp.2.bias",
    "vit_model.vision_model.embeddings.position_embedding.weight",
    "vae2llm.bias",
)
CE_WEIGHT, MSE_WEIGHT = 0.5, 2.0


def write(folder: pathlib.Path, sizes: dict, hw, vit_hw, rows, seed: int = 0) -> pathlib.Path:
    """Writes checkpoint and answers.

    Args:
      folder: made.
      sizes: `llm`, `vit` and `config`, as the JSON files have them.
      hw, vit_hw: of all images, as the two sides see them.
      rows: samples of the packed row; each a list of `text:N` (N tokens), `target:N` (a text with labels),
        `noised`, `clean`, `vit`.
      seed: of everything.
    """
    rng = np.random.default_rng(seed)

    def draw(shapes, seed, dtype):
        return {name: _drawn(rng, name, shape) for name, shape in shapes.items()}

    write_fake(folder, sizes, draw=draw)
    tensors, coder = (safetensors.numpy.load_file(folder / f"{name}.safetensors") for name in ("ema", "ae"))
    config = sizes["config"]
    settings = dict(token_ids=IDS, image_hw=hw, vit_hw=vit_hw, flow=FLOW)
    settings |= dict(ce_weight=CE_WEIGHT, mse_weight=MSE_WEIGHT)
    (folder / "golden.json").write_text(json.dumps(settings))
    with jax.default_matmul_precision("highest"):
        reference = Reference(tensors, coder, sizes, IDS)
        factor = 2 ** (len(config["vae"]["ch_mult"]) - 1) * config["latent_patch_size"]
        reference.latent_grid = (hw[0] // factor, hw[1] // factor)
        made = _parts(reference, rng, hw, vit_hw)
        made |= _row(reference, rng, hw, vit_hw, rows)
        made |= _after(reference, rng, hw, vit_hw)
    np.savez(folder / "golden.npz", **{name: np.asarray(x) for name, x in made.items()})
    return folder


def _drawn(rng, name: str, shape) -> np.ndarray:
    x = rng.normal(size=shape)
    if "norm" in name and name.endswith("weight"):
        x = 1 + 0.1 * x
    elif len(shape) > 1 and "embed" not in name.rsplit(".", 2)[-2]:
        x = x / np.sqrt(np.prod(shape[1:]))
    else:
        x = 0.3 * x
    return x.astype(np.float32)


def _image(rng, hw) -> np.ndarray:
    return rng.uniform(-1, 1, (3, *hw)).astype(np.float32)


def _parts(reference: Reference, rng, hw, vit_hw) -> dict:
    image, view = _image(rng, hw), _image(rng, vit_hw)
    latent, features = reference.latent(image), reference.features(reference.w, view)
    return {
        "ae_image": image,
        "ae_moments": reference.moments(image),
        "ae_latent": latent,
        "ae_decoded": reference.decoded(latent),
        "vit_image": view,
        "vit_patches": reference.patches(view),
        "vit_position_ids": reference.vit_places(vit_hw),
        "vit_features": features,
        "vit_connected": reference.connected(reference.w, features, vit_hw),
    }


def _row(reference: Reference, rng, hw, vit_hw, rows) -> dict:
    """The packed row: what is given, and what comes out."""
    vocabulary = reference.llm["vocab_size"]
    out: dict[str, list] = {f"train_{n}": [] for n in _LISTS}
    samples, at, values, noises = [], 0, [], []
    for number, row in enumerate(rows):
        segments, splits, modes, start = [], [], [], at
        for kind in row:
            if kind[0] in "t":
                ids = [IDS["bos_token_id"], *rng.integers(8, vocabulary, int(kind.split(":")[1]) - 2)]
                ids.append(IDS["eos_token_id"])
                out["train_text_ids"] += ids
                out["train_text_indexes"] += range(at, at + len(ids))
                if kind.startswith("target"):
                    out["train_ce_indexes"] += range(at, at + len(ids))
                    out["train_ce_labels"] += [*ids[1:], IDS["start_of_image"]]
                segments.append(Segment("text", ids))
                length, mode = len(ids), 0
            else:
                length, mode = _add_image(reference, rng, hw, vit_hw, kind, segments, out, at, noises, values)
            splits, modes, at = [*splits, length], [*modes, mode], at + length
        out[f"train_splits_{number}"], out[f"train_modes_{number}"] = splits, modes
        out["train_sample_lens"].append(at - start)
        samples.append(segments)
    return _answers(reference, out, samples, values, noises, hw, vit_hw)


_LISTS = (
    "text_ids", "text_indexes", "ce_indexes", "ce_labels", "vae_images", "vae_indexes", "timestep_logits",
    "mse_indexes", "vit_images", "vit_indexes", "sample_lens",
)  # fmt: skip


def _add_image(reference, rng, hw, vit_hw, kind, segments, out, at, noises, targets):
    """One image of the row: its segment, and what is stored of it."""
    ids = out["train_text_ids"], out["train_text_indexes"]
    if kind == "vit":
        view = _image(rng, vit_hw)
        out["train_vit_images"].append(view)
        segments.append(Segment("vit", view))
        tokens, where = len(reference.patches(view)), out["train_vit_indexes"]
    else:
        image = _image(rng, hw)
        clean = reference.tokens(reference.latent(image))
        out["train_vae_images"].append(image)
        noise = rng.normal(size=clean.shape).astype(np.float32)
        noises.append(noise)
        logit = rng.normal() if kind == "noised" else -np.inf
        t = 1 / (1 + np.exp(-logit))
        shift = reference.config.get("timestep_shift", 1.0)
        t = shift * t / (1 + (shift - 1) * t)
        out["train_timestep_logits"] += [logit] * len(clean)
        segments.append(Segment(kind, (1 - t) * clean + t * noise, t))
        tokens, where = len(clean), out["train_vae_indexes"]
        if kind == "noised":
            out["train_mse_indexes"] += range(at + 1, at + 1 + tokens)
            targets.append(noise - clean)
    where += range(at + 1, at + 1 + tokens)
    ids[0].extend([IDS["start_of_image"], IDS["end_of_image"]])
    ids[1].extend([at, at + tokens + 1])
    return tokens + 2, 2 if kind == "noised" else 1


def _answers(reference, out, samples, targets, noises, hw, vit_hw) -> dict:
    labels, ce_at, mse_at = (
        np.array(out[f"train_{n}"], int) for n in ("ce_labels", "ce_indexes", "mse_indexes")
    )

    def loss(w):
        hidden = reference.hidden(w, samples)
        logits = reference.logits(w, hidden[ce_at])
        ce = jax.nn.logsumexp(logits, -1) - logits[np.arange(len(labels)), labels]
        total = CE_WEIGHT * ce.mean()
        mse = jnp.zeros((0, reference.w["llm2vae.bias"].size))
        if len(mse_at):
            velocity = reference.linear(w, "llm2vae", hidden[mse_at])
            mse = jnp.square(velocity - jnp.concatenate(targets))
            total = total + MSE_WEIGHT * mse.mean()
        return total, (hidden, ce, mse)

    (total, (hidden, ce, mse)), grads = jit_once(jax.value_and_grad(loss, has_aux=True))(reference.w)
    latents = [reference.latent(image) for image in out["train_vae_images"]]
    channels = reference.config["vae"]["z_channels"]
    factor = 2 ** (len(reference.config["vae"]["ch_mult"]) - 1)
    shape = (0, channels, hw[0] // factor, hw[1] // factor)
    places = grid_ids(reference.latent_grid, reference.config["max_latent_size"])
    made = {name: np.array(x) for name, x in out.items()}
    made |= {
        "train_vae_images": np.array(out["train_vae_images"], np.float32).reshape(-1, 3, *hw),
        "train_vit_images": np.array(out["train_vit_images"], np.float32).reshape(-1, 3, *vit_hw),
        "train_timestep_logits": np.array(out["train_timestep_logits"], np.float32),
        "train_noise": np.concatenate(noises) if noises else np.zeros((0, mse.shape[1]), np.float32),
        "train_latents": np.stack(latents) if latents else np.zeros(shape, np.float32),
        "train_vae_position_ids": np.tile(places, len(latents)),
        "train_position_ids": np.array(reference.ids_of(samples)),
        "train_hidden": hidden,
        "train_ce": ce,
        "train_mse": mse,
        "train_loss": total,
    }
    for name in ("text_ids", "text_indexes", "ce_indexes", "ce_labels", "vae_indexes", "mse_indexes"):
        made[f"train_{name}"] = made[f"train_{name}"].astype(np.int64)
    made["train_vit_indexes"] = made["train_vit_indexes"].astype(np.int64)
    return made | {f"grad/{name}": grads[name] for name in GRADIENTS if name in grads}


def _after(reference: Reference, rng, hw, vit_hw) -> dict:
    """A context, greedy text and guided images after it."""
    vocabulary = reference.llm["vocab_size"]
    prompt, instruction = (rng.integers(8, vocabulary, n) for n in (4, 7))
    image, view = _image(rng, hw), _image(rng, vit_hw)
    texts = [
        Segment("text", [IDS["bos_token_id"], *map(int, x), IDS["eos_token_id"]])
        for x in (prompt, instruction)
    ]
    clean = Segment("clean", reference.tokens(reference.latent(image)))
    full = [texts[0], clean, Segment("vit", view), texts[1]]
    ids = reference.ids_of([full])
    noise = rng.normal(size=clean.content.shape).astype(np.float32)
    contexts = {"full": full, "notext": full[:-1], "noimg": texts}
    velocity = _velocity(reference, contexts)
    samples = {name: _sampled(velocity, noise, *g) for name, g in GUIDANCES.items()}
    return {
        "inf_prompt": prompt,
        "inf_instruction": instruction,
        "inf_image": image,
        "inf_vit_image": view,
        "inf_greedy_tokens": np.array(_greedy(reference, full, 6)),
        "inf_context_len": np.array([len(ids)]),
        "inf_context_rope": np.array([ids[-1] + 1]),
        "flow_noise": noise,
        **{f"flow_{name}": x for name, x in samples.items()},
        "flow_image": reference.decoded(reference.untokened(samples["bothglobal"])),
    }


def _greedy(reference: Reference, context, count: int) -> list[int]:
    @jit_once
    def following(written):
        hidden = reference.hidden(reference.w, [[*context, Segment("text", written)]])
        return reference.logits(reference.w, hidden[-count:]).argmax(-1)

    written = np.full(count, IDS["bos_token_id"])
    for i in range(count - 1):
        written[i + 1] = following(jnp.asarray(written))[i]
    return written.tolist()


def _velocity(reference: Reference, contexts):
    """Velocities of a new image after each context."""

    @jit_once
    def velocity(x, t):
        def of(context):
            hidden = reference.hidden(reference.w, [[*context, Segment("noised", x, t)]])
            return reference.linear(reference.w, "llm2vae", hidden[-1 - len(x) : -1])

        return {name: of(context) for name, context in contexts.items()}

    return velocity


def _sampled(velocity, x, text: float, image: float, renorm: str):
    s = np.linspace(1, 0, FLOW["num_timesteps"])
    times = FLOW["timestep_shift"] * s / (1 + (FLOW["timestep_shift"] - 1) * s)
    low, high = FLOW["cfg_interval"]
    for t, after in zip(times[:-1], times[1:], strict=True):
        v = velocity(x, t)
        guided = v["full"]
        if low < t <= high and (text > 1 or image > 1):
            guided = _guided(v, text, image, renorm)
        x = x - guided * (t - after)
    return x


def _guided(v, text: float, image: float, renorm: str):
    full = v["full"]

    def factor(x, axis):
        size = jnp.linalg.norm(full, axis=axis, keepdims=True) / (
            jnp.linalg.norm(x, axis=axis, keepdims=True) + 1e-8
        )
        return jnp.clip(size, FLOW["cfg_renorm_min"], 1.0)

    by_text = v["notext"] + text * (full - v["notext"])
    if renorm == "text_channel":
        by_text = by_text * factor(by_text, -1)
        return v["noimg"] + image * (by_text - v["noimg"]) if image > 1 else by_text
    guided = v["noimg"] + image * (by_text - v["noimg"]) if image > 1 else by_text
    return guided * factor(guided, (-1, -2) if renorm == "global" else -1)
