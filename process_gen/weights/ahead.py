"""Encodes the images of a data set once, instead of in every step of the training.

`config.data.latents` names the folder that they go to, `config.train.init` the
weights whose autoencoder makes them. `python -m process_gen.prepare` calls this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import logging
from ml_collections import ConfigDict

from process_gen.checkpoints import arrays
from process_gen.checkpoints.published import sources
from process_gen.data.errors import BadTrajectory
from process_gen.data.latents import (
    LatentsInfo,
    LatentsMismatch,
    LatentsWriter,
    images_of,
    is_complete,
    read_info,
)
from process_gen.data.loader import Source
from process_gen.data.sources import latents_folders
from process_gen.distributed import lock
from process_gen.experiment import builders
from process_gen.models import autoencoder
from process_gen.models.config import ModelConfig
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Trajectory
from process_gen.weights.origin import read_weights

IMAGES = 8
"""Batch size of the encoder, in images."""
GROUP = 16
"""Trajectories whose images are batched together."""


def encode_latents(
    config: ConfigDict, folder: str, source: Source, layout: Layout, params: Any
) -> LatentsInfo:
    """Writes the latents of every trajectory of a source, unless they are there; goes on after a stop.

    `folder` is one of `sources.latents_folders`, `params` are the autoencoder's, from `autoencoder_params`.
    Returns what the folder holds then.

    Raises:
      ConfigError: the folder holds other latents.
      BadTrajectory: of those that are encoded now, one is broken and `config.data.on_error` says fail, or its
        latents are too large for half precision.
    """
    model = builders.build_model_config(config)
    info = LatentsInfo.of(source, layout, fingerprint(params))
    try:
        if not is_complete(folder, info):  # which needs no lock, nor a folder that can be written
            with lock.hold(folder, "encoding latents", wait=True):
                if not is_complete(folder, info):
                    _encode(config, folder, info, source, model, params)
                    return info
    except LatentsMismatch as error:
        raise builders.ConfigError(f"config.data.latents: {error}") from error
    logging.info("already encoded: %s", folder)
    return info


def _encode(
    config: ConfigDict, folder: str, info: LatentsInfo, source: Source, model: ModelConfig, params: Any
) -> None:
    """Encodes and writes the trajectories that the folder lacks."""
    params = jax.device_put(params)
    encode = jax.jit(lambda params, images: autoencoder.to_tokens(model, images, params))
    bad, skip = 0, config.data.on_error != "fail"
    shown = dict(total=len(source), unit=" trajectories", desc="encoding", mininterval=1.0)
    with LatentsWriter(folder, info) as writer, tqdm.tqdm(initial=writer.written, **shown) as bar:
        if writer.written:
            logging.info("%d of %d trajectories are encoded already", writer.written, len(source))
        for start in range(writer.written, len(source), GROUP):
            indices = range(start, min(start + GROUP, len(source)))
            group = [_read(source, index, skip) for index in indices]
            found = iter(_encoded(encode, params, [one for one in group if isinstance(one, Trajectory)]))
            for index, one in zip(indices, group, strict=True):
                if isinstance(one, Trajectory):
                    files_sum = source.without_pixels(index)[1] if hasattr(source, "without_pixels") else None
                    writer.write(one, next(found), files_sum)
                else:
                    bad += 1
                    logging.warning("left out bad trajectory (%d so far): %s", bad, one)
                    writer.write_bad(one)
            bar.update(len(group))


def autoencoder_params(config: ConfigDict) -> dict[str, Any]:
    """The parameters of the autoencoder that a config starts from, on the host, float32.

    Raises:
      ConfigError: the model's latents are pixels, or there are no such weights, or of other sizes.
      CheckpointError: the weights cannot be read.
    """
    model, origin = builders.build_model_config(config), config.train.get("init", "")
    if model.autoencoder == "patches":
        raise builders.ConfigError(
            "config.data.latents is for models with an autoencoder; with model.autoencoder='patches' latents "
            "are the pixels themselves: leave it empty"
        )
    if not origin:
        raise builders.ConfigError(
            "config.data.latents needs the weights of the autoencoder: set config.train.init to a published "
            "checkpoint or to a run"
        )
    weights = read_weights(origin, vit=False)  # nothing but the autoencoder is asked for
    if weights.autoencoder is None:
        raise builders.ConfigError(f"{weights.source} (config.train.init) holds no autoencoder")
    if weights.flux != model.flux:
        raise builders.ConfigError(
            f"the autoencoder in {weights.source} is {weights.flux}, the config has {model.flux}"
        )
    return sources.tree(weights.autoencoder.in_dtype("float32"))


def check_autoencoder(config: ConfigDict, buckets: Mapping[Layout, Source]) -> None:
    """Raises ConfigError unless stored latents were made by the autoencoder that the run starts with."""
    if not config.data.latents:
        return
    origin, own = config.train.get("init", ""), fingerprint(autoencoder_params(config))
    for layout, source in buckets.items():
        for folder in latents_folders(source, config.data, layout):
            if own != (made_by := read_info(folder).autoencoder):
                raise builders.ConfigError(
                    f"the latents in {folder} were made by the autoencoder {made_by}, {origin} holds {own}: "
                    "make them anew in another folder, config.data.latents"
                )


def fingerprint(params: Any) -> str:
    """A hash of an autoencoder's parameters, 16 hex digits: latents are of use only with these parameters."""
    digest = hashlib.sha256()
    for name, x in sorted(arrays.flatten(params).items()):
        digest.update(f"{name} {x.shape}\n".encode())
        digest.update(np.ascontiguousarray(x, np.float32))
    return digest.hexdigest()[:16]


def _read(source: Source, index: int, skip: bool) -> Trajectory | BadTrajectory:
    """A trajectory of the source; of a broken one the error, which is raised unless `skip` is set."""
    try:
        return source[index]
    except BadTrajectory as error:
        if not skip:
            raise
        return error


def _encoded(encode: Any, params: Any, trajectories: list[Trajectory]) -> Iterator[np.ndarray]:
    """The latents of each trajectory, [images, N tokens, V values]."""
    counts = [len(images_of(one)) for one in trajectories]
    if not counts:
        return
    images = np.stack([image for one in trajectories for image in images_of(one)])
    padded = np.concatenate([images, np.zeros((-len(images) % IMAGES, *images.shape[1:]), images.dtype)])
    blocks = [padded[start : start + IMAGES] for start in range(0, len(padded), IMAGES)]
    latents = np.concatenate([jax.device_get(encode(params, jnp.asarray(block))) for block in blocks])
    yield from np.split(latents[: len(images)], np.cumsum(counts)[:-1])
