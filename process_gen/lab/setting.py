"""Builds the model, data and train programs of a config as `train` does, but without a workdir."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from process_gen.data.buckets import Size, size_of, split_into_buckets
from process_gen.data.loader import Loader, Source
from process_gen.data.sources import prepare_source
from process_gen.data.tokenizers import Tokenizer
from process_gen.distributed import sharding
from process_gen.distributed.mesh import MeshConfig, make_mesh
from process_gen.experiment import builders, vocabulary
from process_gen.models.unified import UnifiedModel
from process_gen.training import loading
from process_gen.training.own import OwnStates, drawings_of
from process_gen.training.program import TrainProgram
from process_gen.training.step import TrainState
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.layout import Layout
from process_gen.weights.start import start_from, weights_for


@dataclasses.dataclass(frozen=True)
class Setting:
    """A training config and the objects built from it.

    Attributes:
      config: of a training.
      tokenizer, model, mesh: what the config names.
      layouts, programs: layout and train program by image size.
    """

    config: ConfigDict
    tokenizer: Tokenizer
    model: UnifiedModel
    mesh: Mesh
    layouts: Mapping[Size, Layout]
    programs: Mapping[Size, TrainProgram]

    @classmethod
    def of(cls, config: ConfigDict) -> Setting:
        """Builds it; raises ConfigError where the config cannot work, naming a loss that is wrong."""
        builders.check(config)
        tokenizer = vocabulary.build_tokenizer(config)
        model, layouts = builders.build_model(config, tokenizer), builders.build_layouts(config)
        mesh = make_mesh(MeshConfig(**config.mesh.to_dict()))
        programs = {
            size: TrainProgram.of(config, model.clone(layout=layout), mesh)
            for size, layout in layouts.items()
        }
        return cls(config, tokenizer, model, mesh, layouts, programs)

    @property
    def program(self) -> TrainProgram:
        """The train program of `config.layout.image_size`."""
        return self.programs[self.model.layout.image_size]

    @functools.cached_property
    def source(self) -> Source:
        """The trajectories that the config names; prepares the data set if needed."""
        return prepare_source(self.config.data, self.model.layout, self.tokenizer, report=logging.info)

    def batches(self, seed: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields a training's batches without end: fields of a `Batch`, the rows of this host."""
        with builders.as_config_error(), _quiet():
            buckets = split_into_buckets(self.source, list(self.layouts))
            loader = loading.load(self._seeded(seed), buckets, self.layouts, self.tokenizer, self._rows)
        with contextlib.closing(iter(loader)) as iterator:
            yield from iterator

    def batch(self, seed: int, number: int = 0) -> Batch:
        """Batch `number` of `batches(seed)`, as host arrays; ConfigError where it is negative."""
        if number < 0:
            raise builders.ConfigError(f"batches are numbered from 0, got {number}")
        with contextlib.closing(self.batches(seed)) as batches:
            return Batch(**next(itertools.islice(batches, number, None)))

    def held_out(self) -> Loader | None:
        """Validation batches; None where the config holds nothing out."""
        with builders.as_config_error(), _quiet():
            return loading.held_out(self.config, self.source, self.layouts, self.tokenizer, self._rows)

    def own_states(self, seed: int) -> OwnStates | None:
        """What puts the model's own images into training batches (`train.own`); None where its share is 0."""
        if not self.config.train.own.share:
            return None
        return OwnStates(self._seeded(seed), self.programs, self._rows, self._drawings)

    @functools.cached_property
    def _drawings(self) -> dict[Size, Any]:
        return drawings_of(self.config, self.programs)

    @property
    def _rows(self) -> tuple[int, ...]:
        """Indices of the rows of a global batch that this host loads."""
        return sharding.local_rows(self.config.train.batch_size, self.mesh)

    def _seeded(self, seed: int) -> ConfigDict:
        config = self.config.copy_and_resolve_references()
        config.seed = seed
        return config

    def state(self, seed: int) -> TrainState:
        """The train state before the first step; from the weights of `config.train.init`, if it names any."""
        state = self.program.create_state(jax.random.key(seed))
        if origin := self.config.train.init:
            weights = weights_for(self.model, origin, self.tokenizer)
            state = self.program.with_reference(start_from(state, self.model, weights, self.tokenizer))
        return state

    def with_networks(self, state: TrainState) -> TrainState:
        """Adds the frozen networks that the losses read, as a new training initializes them.

        A state that has them is returned unchanged: its `reference` is the model its own training began with.
        """
        if set(state.networks or ()) == set(self.program.recipe.losses.networks):
            return state
        return state.replace(networks=self.state(self.config.seed).networks)

    def placed(self, batch: Mapping[str, Any]) -> tuple[TrainProgram, Batch]:
        """The train program for the image size of a host batch, and the batch sharded over the mesh."""
        program = self.programs[size_of(batch["image"])]
        return program, program.placed(batch)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Logs only warnings and errors inside the block, so that a notebook shows results alone."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)
