"""A run that trains adapters, and a head besides: the same on a mesh, after a stop, and once it is loaded."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest

from process_gen import train as training
from process_gen.checkpoints import arrays
from process_gen.checkpoints.load import open_saved
from process_gen.checkpoints.published.adapters import is_adapter
from process_gen.experiment.builders import ConfigError
from process_gen.weights.origin import read_weights
from process_gen.weights.restore import load_model
from tests.distributed.equal_runs import WAYS, differences, train
from tests.test_train import debug_config

STEPS = 4
TUNED = {
    "model.lora.rank": 2,
    "model.lora.patterns": ("backbone/layers/*_proj/kernel",),
    "optimizer.freeze": ("!latent_out/*",),
    "optimizer.ema": 0.5,
    "train.checkpoint_every": STEPS // 2,
}


@pytest.mark.long  # two trainings in processes of their own
def test_adapters_train_on_a_mesh_as_on_one_device(tmp_path):
    one, mesh = tmp_path / "one", tmp_path / "mesh"
    losses = train(one, STEPS, 1, 1, TUNED)
    overrides = TUNED | WAYS["2 data x 2 fsdp x 2 tensor"][2]
    assert train(mesh, STEPS, 1, 8, overrides) == pytest.approx(losses, rel=1e-5)
    assert max(differences(one, mesh).values()) < 1e-4


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The config of a run of four steps with checkpoints at two and four, and its workdir."""
    folder = tmp_path_factory.mktemp("tuned")
    config = debug_config(folder)
    with config.unlocked():
        config.update_from_flattened_dict(TUNED)
    with jax.numpy_rank_promotion("allow"):
        training.train(config, str(folder / "run"))
    return config, folder / "run"


@pytest.mark.slow  # a train step is compiled
def test_a_run_with_adapters_goes_on_bit_for_bit_and_with_the_same_patterns_only(finished, tmp_path):
    config, one = finished
    stopped = tmp_path / "stopped"
    shutil.copytree(one, stopped)
    shutil.rmtree(stopped / "checkpoints" / str(STEPS))
    with jax.numpy_rank_promotion("allow"):
        training.train(config, str(stopped))
        for item in ("params", "ema", "opt_state"):
            same, again = (open_saved(folder).params(item) for folder in (one, stopped))
            jax.tree.map(np.testing.assert_array_equal, same, again)
        config = config.copy_and_resolve_references()
        config.optimizer.freeze = ()
        with pytest.raises(ConfigError, match=r"config.optimizer.freeze is \[\], and .* was trained with"):
            training.train(config, str(stopped))


@pytest.mark.slow  # as above
def test_what_such_a_run_leaves_is_loaded_merged(finished):
    _, one = finished
    average, params = (arrays.flatten(open_saved(one).params(item)) for item in ("ema", "params"))
    assert all(is_adapter(name) or name.startswith("latent_out/") for name in average)
    before = arrays.flatten(open_saved(one / "checkpoints" / str(STEPS // 2)).params("params"))
    assert {name for name in params if np.any(params[name] != before[name])} == average.keys()
    restored = arrays.flatten(load_model(str(one)).params)
    assert restored.keys() == {name for name in params if not is_adapter(name)}
    np.testing.assert_array_equal(restored["embedding"], params["embedding"])
    np.testing.assert_array_equal(restored["latent_out/kernel"], average["latent_out/kernel"])
    assert read_weights(one).adapted.besides == ("latent_out/bias", "latent_out/kernel")
    name = "backbone/layers/gen/q_proj"
    product = average[f"{name}/lora_a"] @ average[f"{name}/lora_b"]
    np.testing.assert_allclose(
        restored[f"{name}/kernel"] - params[f"{name}/kernel"], 8.0 * product, atol=1e-6
    )
