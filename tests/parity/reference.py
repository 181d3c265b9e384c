"""The published program once more, as plain as its description: no slots, no scan, no cache, published names.

A sequence is a list of segments; it is read whole, with an explicit mask. It makes known answers for
checkpoints of any size and for rows of any structure.

L tokens, D width, N latent tokens, V values of one, P patches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tests.checkpoints.published.conftest import table


@dataclasses.dataclass(frozen=True)
class Segment:
    """`text` (ids), `noised` or `clean` latents (tokens [N, V], t), or `vit` (pixels [3, H, W])."""

    kind: str
    content: object
    t: float = 0.0


class Reference:
    """Computes with published tensors by name."""

    def __init__(self, tensors: dict, coder: dict, sizes: dict, ids: dict):
        self.w, self.coder = jax.tree.map(jnp.asarray, (tensors, coder))
        self.ids = ids
        self.llm, self.vit, self.config = sizes["llm"], sizes["vit"], sizes["config"]

    def linear(self, w, name, x):
        bias = f"{name}.bias"
        return x @ w[f"{name}.weight"].T + (w[bias] if bias in w else 0.0)

    # ------------------------------------------------------------- the language model

    def norm(self, w, name, x):
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.llm["rms_norm_eps"])
        return x * w[f"{name}.weight"]

    def hidden(self, w, samples: Sequence[Sequence[Segment]]):
        """Hidden states [L, D] after the final norms."""
        embedded, gen, sees = self._embedded(w, samples)
        gen = np.array(gen)[:, None]

        def pick(name, end, apply, x):
            und, other = f"{name[0]}{name[1]}{end}", f"{name[0]}{name[1]}_moe_gen{end}"
            return jnp.where(gen[..., None] if x.ndim == 3 else gen, apply(other, x), apply(und, x))

        heads, kv = self.llm["num_attention_heads"], self.llm["num_key_value_heads"]
        head = self.llm["hidden_size"] // heads
        rates = self.llm["rope_theta"] ** (-np.arange(head // 2) / (head // 2))
        angles = np.array(self.ids_of(samples))[:, None, None] * rates
        cos, sin = np.cos(angles), np.sin(angles)

        def rotated(x):
            a, b = x[..., : head // 2], x[..., head // 2 :]
            return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

        x = embedded
        for i in range(self.llm["num_hidden_layers"]):
            layer = f"language_model.model.layers.{i}."

            def norm(name, x):
                return self.norm(w, name, x)

            def project(name, x):
                return self.linear(w, name, x)

            y = pick((layer, "input_layernorm"), "", norm, x)
            q, k, v = (
                pick((layer, f"self_attn.{n}_proj"), "", project, y).reshape(len(x), -1, head) for n in "qkv"
            )
            q = rotated(pick((layer, "self_attn.q_norm"), "", norm, q))
            k = rotated(pick((layer, "self_attn.k_norm"), "", norm, k))
            k, v = jnp.repeat(k, heads // kv, 1), jnp.repeat(v, heads // kv, 1)
            scores = jnp.einsum("qnh,knh->nqk", q, k) / np.sqrt(head)
            weights = jax.nn.softmax(jnp.where(sees, scores, -jnp.inf), -1)
            attended = jnp.einsum("nqk,knh->qnh", weights, v).reshape(len(x), -1)
            x = x + pick((layer, "self_attn.o_proj"), "", project, attended)
            y = pick((layer, "post_attention_layernorm"), "", norm, x)
            gate = pick((layer, "mlp"), ".gate_proj", project, y)
            up = pick((layer, "mlp"), ".up_proj", project, y)
            x = x + pick((layer, "mlp"), ".down_proj", project, jax.nn.silu(gate) * up)
        return pick(("language_model.model.", "norm"), "", lambda n, x: self.norm(w, n, x), x)

    def count(self, segment: Segment) -> int:
        """Tokens of a segment, brackets included."""
        if segment.kind != "vit":
            return len(segment.content) + 2 * (segment.kind != "text")
        return len(self.vit_places(segment.content.shape[1:])) + 2

    def ids_of(self, samples: Sequence[Sequence[Segment]]) -> list[int]:
        """The rotary ids of all tokens."""
        ids: list[int] = []
        for segments in samples:
            at = 0
            for segment in segments:
                text = segment.kind == "text"
                ids += [at + i * text for i in range(self.count(segment))]
                at += self.count(segment) if text else segment.kind != "noised"
        return ids

    def _embedded(self, w, samples):
        """Embedded tokens [L, D], which of them are latents [L], who sees whom [L, L]."""
        parts, gen, owner = [], [], []
        words = w["language_model.model.embed_tokens.weight"]
        for number, segments in enumerate(samples):
            for place, segment in enumerate(segments):
                count, latent = self.count(segment), segment.kind in ("noised", "clean")
                if segment.kind == "text":
                    parts.append(words[jnp.asarray(segment.content)])
                else:
                    brackets = words[jnp.asarray([self.ids["start_of_image"], self.ids["end_of_image"]])]
                    parts += [brackets[:1], self.seen(w, segment), brackets[1:]]
                gen += [latent and 0 < i < count - 1 for i in range(count)]
                owner += [(number, place, segment.kind)] * count
        sees = np.zeros((len(gen), len(gen)), bool)
        for q, (sample, place, kind) in enumerate(owner):
            for k, (other, before, seen) in enumerate(owner):
                if sample == other and place == before:
                    sees[q, k] = kind != "text" or k <= q
                elif sample == other and before < place:
                    sees[q, k] = seen != "noised"
        return jnp.concatenate(parts), gen, sees

    def logits(self, w, hidden):
        return hidden @ w["language_model.lm_head.weight"].T

    # ------------------------------------------------------------- images

    def seen(self, w, segment: Segment):
        """The tokens of an image [N, D]."""
        if segment.kind == "vit":
            return self.connected(w, self.features(w, segment.content), segment.content.shape[1:])
        grid = self.latent_grid
        places = grid_ids(grid, self.config["max_latent_size"])
        x = self.linear(w, "vae2llm", segment.content) + self.time(w, segment.t)
        return x + table(self.config["max_latent_size"], self.llm["hidden_size"])[places]

    latent_grid: tuple[int, int] = (0, 0)

    def time(self, w, t):
        rates = np.exp(-np.log(10000.0) * np.arange(128) / 128)
        waves = jnp.concatenate([jnp.cos(t * rates), jnp.sin(t * rates)])
        return self.linear(
            w, "time_embedder.mlp.2", jax.nn.silu(self.linear(w, "time_embedder.mlp.0", waves))
        )

    def patches(self, pixels):
        """[3, H, W] to [P, side * side * 3]."""
        side = self.vit["patch_size"]
        c, h, width = pixels.shape
        x = pixels.reshape(c, h // side, side, width // side, side).transpose(1, 3, 2, 4, 0)
        return x.reshape(-1, side * side * c)

    def vit_places(self, hw):
        side = self.vit["patch_size"]
        return grid_ids((hw[0] // side, hw[1] // side), self.config["vit_max_num_patch_per_side"])

    def features(self, w, pixels):
        tower = "vit_model.vision_model."
        heads = self.vit["num_attention_heads"]

        def norm(name, x):
            x = x - x.mean(-1, keepdims=True)
            x = x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + self.vit["layer_norm_eps"])
            return x * w[f"{tower}{name}.weight"] + w[f"{tower}{name}.bias"]

        x = self.linear(w, f"{tower}embeddings.patch_embedding", self.patches(pixels))
        x = x + w[f"{tower}embeddings.position_embedding.weight"][self.vit_places(pixels.shape[1:])]
        for i in range(self.vit["num_hidden_layers"] - 1):
            layer = f"encoder.layers.{i}."
            y = norm(f"{layer}layer_norm1", x)
            q, k, v = (
                self.linear(w, f"{tower}{layer}self_attn.{n}_proj", y).reshape(len(x), heads, -1)
                for n in "qkv"
            )
            scores = jnp.einsum("qnh,knh->nqk", q, k) / np.sqrt(q.shape[-1])
            y = jnp.einsum("nqk,knh->qnh", jax.nn.softmax(scores, -1), v).reshape(x.shape)
            x = x + self.linear(w, f"{tower}{layer}self_attn.out_proj", y)
            y = self.linear(w, f"{tower}{layer}mlp.fc1", norm(f"{layer}layer_norm2", x))
            x = x + self.linear(w, f"{tower}{layer}mlp.fc2", jax.nn.gelu(y, approximate=True))
        return norm("post_layernorm", x)

    def connected(self, w, features, hw):
        x = jax.nn.gelu(self.linear(w, "connector.fc1", features), approximate=True)
        side = self.config["vit_max_num_patch_per_side"]
        places = table(side, self.llm["hidden_size"])[self.vit_places(hw)]
        return self.linear(w, "connector.fc2", x) + places

    # ------------------------------------------------------------- the autoencoder

    def moments(self, pixels):
        x = self._conv("encoder.conv_in", pixels[None])
        levels = len(self.config["vae"]["ch_mult"])
        for i in range(levels):
            for j in range(self.config["vae"]["num_res_blocks"]):
                x = self._block(f"encoder.down.{i}.block.{j}", x)
            if i < levels - 1:
                x = self._conv(f"encoder.down.{i}.downsample.conv", x, stride=2, pad=((0, 1), (0, 1)))
        x = self._middle("encoder", x)
        return self._conv("encoder.conv_out", jax.nn.silu(self._groups("encoder.norm_out", x)))[0]

    def latent(self, pixels):
        """The scaled mean [C, h, w]."""
        vae, moments = self.config["vae"], self.moments(pixels)
        return vae["scale_factor"] * (moments[: vae["z_channels"]] - vae["shift_factor"])

    def decoded(self, latent):
        vae = self.config["vae"]
        x = self._conv("decoder.conv_in", latent[None] / vae["scale_factor"] + vae["shift_factor"])
        x = self._middle("decoder", x)
        for i in reversed(range(len(vae["ch_mult"]))):
            for j in range(vae["num_res_blocks"] + 1):
                x = self._block(f"decoder.up.{i}.block.{j}", x)
            if i:
                x = self._conv(f"decoder.up.{i}.upsample.conv", x.repeat(2, 2).repeat(2, 3))
        return self._conv("decoder.conv_out", jax.nn.silu(self._groups("decoder.norm_out", x)))[0]

    def tokens(self, latent):
        """[C, h, w] to [N, V]."""
        p = self.config["latent_patch_size"]
        c, h, w = latent.shape
        return latent.reshape(c, h // p, p, w // p, p).transpose(1, 3, 2, 4, 0).reshape(-1, p * p * c)

    def untokened(self, tokens):
        p, (rows, columns) = self.config["latent_patch_size"], self.latent_grid
        x = tokens.reshape(rows, columns, p, p, -1).transpose(4, 0, 2, 1, 3)
        return x.reshape(x.shape[0], rows * p, columns * p)

    def _conv(self, name, x, stride=1, pad=None):
        kernel, bias = self.coder[f"{name}.weight"], self.coder[f"{name}.bias"]
        pad = pad or ((kernel.shape[2] // 2,) * 2,) * 2
        y = jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, pad)
        return y + bias[None, :, None, None]

    def _groups(self, name, x):
        y = x.reshape(x.shape[0], 32, -1)
        y = (y - y.mean(-1, keepdims=True)) / jnp.sqrt(y.var(-1, keepdims=True) + 1e-6)
        scale, bias = (self.coder[f"{name}.{end}"][None, :, None, None] for end in ("weight", "bias"))
        return y.reshape(x.shape) * scale + bias

    def _block(self, name, x):
        y = self._conv(f"{name}.conv1", jax.nn.silu(self._groups(f"{name}.norm1", x)))
        y = self._conv(f"{name}.conv2", jax.nn.silu(self._groups(f"{name}.norm2", y)))
        shortcut = f"{name}.nin_shortcut"
        return y + (self._conv(shortcut, x) if f"{shortcut}.weight" in self.coder else x)

    def _middle(self, side, x):
        x = self._block(f"{side}.mid.block_1", x)
        y = self._groups(f"{side}.mid.attn_1.norm", x)
        q, k, v = (self._conv(f"{side}.mid.attn_1.{n}", y)[0].reshape(x.shape[1], -1) for n in "qkv")
        y = v @ jax.nn.softmax(q.T @ k / np.sqrt(len(q)), -1).T
        x = x + self._conv(f"{side}.mid.attn_1.proj_out", y.reshape(x.shape))
        return self._block(f"{side}.mid.block_2", x)


def grid_ids(grid: tuple[int, int], side: int) -> np.ndarray:
    """Places of a grid in a table of `side` columns."""
    return (np.arange(grid[0])[:, None] * side + np.arange(grid[1])).reshape(-1)
