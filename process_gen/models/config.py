"""The model's config, the table of named sizes, and the options of training's unroll."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Literal

from process_gen.common.names import check_name, hint
from process_gen.common.patterns import chooses


def _check_positive(config: object, name: str, *fields: str) -> None:
    for field in fields:
        if getattr(config, field) < 1:
            raise ValueError(f"{name}.{field} must be at least 1, got {getattr(config, field)}")


@dataclasses.dataclass(frozen=True)
class VitConfig:
    """The vision transformer of the understanding side (SigLIP 2, arXiv 2502.14786, as BAGEL keeps it).

    Attributes:
      width, layers, mlp: residual width, depth, hidden width of the MLP.
      heads: of attention; each is width / heads wide.
      patch: side of a patch in pixels.
      max_side: rows and columns of the position tables, the learned one of the
        patches and the fixed one of the tokens that the connector makes.
      norm_eps: of every LayerNorm.
    """

    width: int
    layers: int
    mlp: int
    heads: int
    patch: int
    max_side: int
    norm_eps: float = 1e-6

    def __post_init__(self):
        _check_positive(self, "model.vit", "width", "layers", "mlp", "heads", "patch", "max_side")
        if self.width % self.heads:
            raise ValueError(
                f"model.vit.width ({self.width}) must be a multiple of model.vit.heads ({self.heads})"
            )


@dataclasses.dataclass(frozen=True)
class FluxConfig:
    """A convolutional autoencoder of the FLUX.1 kind; the defaults are the published sizes.

    Attributes:
      ch: channels of the first level, a multiple of the 32 groups of every GroupNorm.
      ch_mult: channels of each level as a multiple of `ch`; each level after the
        first halves the sides.
      res_blocks: residual blocks per level of the encoder; the decoder has one more.
      z_channels: channels of a latent.
      in_channels, out_channels: of the images that are encoded and decoded.
      scale, shift: a latent is scale * (z - shift).
    """

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2
    z_channels: int = 16
    in_channels: int = 3
    out_channels: int = 3
    scale: float = 0.3611
    shift: float = 0.1159

    def __post_init__(self):
        object.__setattr__(self, "ch_mult", tuple(self.ch_mult))
        if not self.ch_mult or min(self.ch_mult) < 1:
            raise ValueError(f"model.flux.ch_mult must be numbers of at least 1, got {self.ch_mult}")
        _check_positive(self, "model.flux", "res_blocks", "z_channels", "in_channels", "out_channels")
        if self.ch < 1 or self.ch % 32:
            raise ValueError(f"model.flux.ch must be a multiple of the 32 groups of its norms, got {self.ch}")
        if not self.scale:
            raise ValueError("model.flux.scale must not be 0: decoding divides by it")

    @property
    def factor(self) -> int:
        """Pixels per latent, along each side."""
        return 2 ** (len(self.ch_mult) - 1)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters beside frozen matrices (LoRA, arXiv 2106.09685): W + alpha / rank * A B.

    Attributes:
      rank: columns of A and rows of B; 0 is no adapters.
      alpha: strength; as it is divided by the rank, other ranks need no other alpha.
      patterns: which matrices have adapters, by the names of their kernels (`process_gen.common.patterns`);
        the vocabulary's head never does.
    """

    rank: int = 0
    alpha: float = 16.0
    patterns: tuple[str, ...] = ("backbone/layers/*/[qkvo]_proj/kernel",)

    def __post_init__(self):
        object.__setattr__(self, "patterns", tuple(self.patterns))
        if type(self.rank) is not int or self.rank < 0:
            raise ValueError(
                f"model.lora.rank must be a whole number of at least 0 (0 is off), got {self.rank!r}"
            )
        if not self.alpha > 0:
            raise ValueError(f"model.lora.alpha must be a number above 0, got {self.alpha!r}")

    @property
    def scale(self) -> float:
        """Factor on the product of the two."""
        return self.alpha / self.rank

    def adapts(self, kernel: str) -> bool:
        """Whether the kernel of this name has adapters."""
        return self.rank > 0 and chooses(self.patterns, kernel)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The unified model (BAGEL, arXiv 2505.14683).

    Attributes:
      vocab_size: rows of the embedding and columns of the head.
      width, layers, mlp: residual width, depth, hidden width of SwiGLU.
      heads, kv_heads, head_dim: attention.
      qkv_bias: biases on q, k and v, none elsewhere.
      rope_theta: base of the rotary embedding of 1-D positions.
      image_rope: channel pairs of each head that rotate with the row of a latent
        token, and as many again with its column; the rest rotate with the 1-D
        position. Text and ViT tokens have row and column 0. 0 is the published
        model. Our choice: so attention can find the same place in the last image.
      image_rope_theta: base of those rotations. The fastest turns half a circle a
        token, the slowest almost `theta` times less. Fast ones tell neighbours apart from the start.
      norm_eps: of every RMSNorm.
      latent_patch: side of the patches that the autoencoder's latents are cut into.
      latent_positions: the 2-D position table of latent tokens: fixed sines and
        cosines (`sincos`, the published model), or `learned`, whose rows start nearly
        orthogonal: on a small grid the model learns sooner which cell a text means.
      max_latent_side: rows and columns of that table.
      prediction: what the latent head regresses: the `velocity`, or the `clean`
        image from which the velocity follows.
      time_scale: factor on the timestep in [0, 1] before its sinusoids.
      autoencoder: `patches` (latents are pixels), or `flux`, whose weights are
        frozen and kept apart from the model's.
      flux: sizes of the `flux` autoencoder.
      vit: sizes of the ViT, which makes tokens of the images in context. It has weights
        only where the layout's `vit_grid` makes room for its tokens.
      lora: adapters; with any, nothing else is trained unless `optimizer.freeze` says so.
      dtype: of the computation; parameters are float32.
      attention: explicit scores and masks (`dense`), or a kernel that never holds all
        scores: `splash` on TPUs, `cudnn` on NVIDIA GPUs, `blocked` anywhere, or `flash`,
        whichever of these is for the platform.
      remat: what the backward pass keeps and what it recomputes, a row of the
        table in `process_gen.models.remat`.
      scan_unroll: layers per iteration of the scan over layers in training; sampling takes one.
      logit_chunk: words of the vocabulary whose logits are in memory at a time
        in the losses, a divisor of `vocab_size`; 0, or `vocab_size` and more,
        is all of them.
    """

    vocab_size: int
    width: int
    layers: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool = True
    rope_theta: float = 1e6
    image_rope: int = 0
    image_rope_theta: float = 10.0
    norm_eps: float = 1e-6
    latent_patch: int = 2
    latent_positions: Literal["sincos", "learned"] = "sincos"
    max_latent_side: int = 64
    prediction: Literal["velocity", "clean"] = "velocity"
    time_scale: float = 1.0
    autoencoder: Literal["patches", "flux"] = "patches"
    flux: FluxConfig | None = None
    vit: VitConfig | None = None
    lora: LoraConfig = LoraConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["dense", "flash", "splash", "cudnn", "blocked"] = "dense"
    remat: Literal["none", "dots", "save_attended", "save_qkv", "full", "offload"] = "none"
    scan_unroll: int = 1
    logit_chunk: int = 0

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise ValueError(
                f"model.heads ({self.heads}) must be a multiple of model.kv_heads ({self.kv_heads})"
            )
        if 4 * self.image_rope >= self.head_dim:
            raise ValueError(
                f"model.image_rope ({self.image_rope}) leaves no pair of model.head_dim ({self.head_dim}) "
                "for the 1-D position"
            )
        if self.logit_chunk < 0:
            raise ValueError(f"model.logit_chunk must be at least 0 (0 is off), got {self.logit_chunk}")
        if 0 < self.logit_chunk < self.vocab_size and self.vocab_size % self.logit_chunk:
            near = max(n for n in range(1, self.logit_chunk) if self.vocab_size % n == 0)
            raise ValueError(
                f"model.logit_chunk ({self.logit_chunk}) must divide model.vocab_size ({self.vocab_size}): "
                f"set it to {near}, or to 0 for whole logits"
            )
        if self.autoencoder == "flux" and self.flux is None:
            raise ValueError("model.autoencoder 'flux' needs its sizes in model.flux")

    @property
    def logits_in_chunks(self) -> bool:
        """Whether the losses compute logits of a part of the vocabulary at a time."""
        return 0 < self.logit_chunk < self.vocab_size


_SCENES = dict(
    vocab_size=320,
    rope_theta=100.0,
    latent_patch=8,
    latent_positions="learned",
    max_latent_side=16,
    prediction="clean",
    time_scale=100.0,
)

_VIT_SMALL = VitConfig(width=128, layers=2, mlp=352, heads=2, patch=8, max_side=16)

SIZES: dict[str, ModelConfig] = {
    "debug": ModelConfig(
        width=32,
        layers=2,
        mlp=64,
        heads=2,
        kv_heads=1,
        head_dim=16,
        image_rope=2,
        vit=VitConfig(width=24, layers=2, mlp=40, heads=2, patch=8, max_side=16),
        **_SCENES,
    ),
    "scenes_s": ModelConfig(
        width=128,
        layers=4,
        mlp=352,
        heads=2,
        kv_heads=2,
        head_dim=64,
        image_rope=8,
        vit=_VIT_SMALL,
        **_SCENES,
    ),
    "scenes_m": ModelConfig(
        width=384,
        layers=8,
        mlp=1024,
        heads=6,
        kv_heads=3,
        head_dim=64,
        image_rope=8,
        vit=_VIT_SMALL,
        **_SCENES,
    ),
    "bagel_7b": ModelConfig(
        vocab_size=152064,
        width=3584,
        layers=28,
        mlp=18944,
        heads=28,
        kv_heads=4,
        head_dim=128,
        dtype="bfloat16",
        remat="full",
        logit_chunk=8448,
        autoencoder="flux",
        flux=FluxConfig(),
        vit=VitConfig(width=1152, layers=26, mlp=4304, heads=16, patch=14, max_side=70),
    ),
}


def model_config(size: str, **overrides: object) -> ModelConfig:
    """A row of the size table, with single fields replaced.

    `vit`, `flux` and `lora` take a dataclass, None (not for `lora`), or a mapping of those
    fields that are to differ from the row's.

    Raises:
      ValueError: unknown size or field; the message lists the nearest names.
    """
    check_name(size, SIZES, "model size")
    _check_fields("the model", ModelConfig, overrides)
    row = SIZES[size]
    for field, part, name in (
        ("vit", VitConfig, "ViT"),
        ("flux", FluxConfig, "FLUX autoencoder"),
        ("lora", LoraConfig, "adapters"),
    ):
        if isinstance(changes := overrides.get(field), Mapping):
            _check_fields(f"model.{field}", part, changes)
            if getattr(row, field) is None:
                raise ValueError(f"model size {size!r} has no {name} that model.{field} could change")
            overrides = {**overrides, field: dataclasses.replace(getattr(row, field), **changes)}
    return dataclasses.replace(row, **overrides)


def _check_fields(name: str, config: type, given: Iterable[str]) -> None:
    fields = {f.name for f in dataclasses.fields(config)}
    for key in given:
        if key not in fields:
            raise ValueError(f"{name} has no field {key!r}; {hint(key, fields)}")


ORDERS = ("layers", "scan")


@dataclasses.dataclass(frozen=True)
class UnrollOptions:
    """How turns are unrolled, and what is drawn at random while training.

    What is dropped leaves the sequence, for later tokens too, as in BAGEL's data
    (arXiv 2505.14683), so that guidance can sample with such contexts.

    Attributes:
      order: of the loops over layers and turns; see `process_gen.models.unroll`.
      time_mean, time_std, time_shift: logit-normal timesteps of the flow targets.
      drop_text: probability, per turn, that the newest text before its image is
        left out: the plan or the refine instruction, else the text of the prompt.
      drop_images: probability, per trajectory, that all its images are left out.
      drop_latents, drop_vit: probabilities, per image, that its latents or its ViT
        tokens are left out, independently. They still take their positions.
      context_noise: largest standard deviation of the Gaussian noise on the
        clean images that later tokens see, in latent units. A model trained on
        perfect context drifts when it sees its own images.
      context_noise_share: share of the images that get any.
      sample_latents: whether the latents of an image are drawn from the
        autoencoder's distribution, as the published program trains, instead of
        being its means. Latents that were encoded ahead of time are means.
    """

    order: str = "layers"
    time_mean: float = 0.0
    time_std: float = 1.0
    time_shift: float = 1.0
    drop_text: float = 0.1
    drop_images: float = 0.1
    drop_latents: float = 0.0
    drop_vit: float = 0.0
    context_noise: float = 0.0
    context_noise_share: float = 0.7
    sample_latents: bool = False

    def __post_init__(self):
        if self.order not in ORDERS:
            raise ValueError(f"train.unroll must be one of {', '.join(ORDERS)}, got {self.order!r}")


NO_RANDOM_DROPS = UnrollOptions(drop_text=0.0, drop_images=0.0)
