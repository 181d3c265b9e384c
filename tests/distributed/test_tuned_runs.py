"""A run that trains adapters, and a head besides: the same on a mesh, after a stop, and once it is loaded."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest

from process_gen.checkpoints import arrays
from process_gen.checkpoints.load import open_saved
from process_gen.checkpoints.published.adapters import is_adapter
from process_gen.common.patterns import chooses
from process_gen.weights.origin import read_weights
from process_gen.weights.restore import load_model
from tests.distributed.equal_runs import WAYS, differences, train

STEPS = 4
TUNED = {
    "model.lora.rank": 2,
    "model.lora.patterns": ("backbone/layers/*_proj/kernel",),
    "optimizer.freeze": ("!latent_out/*",),
    "optimizer.ema": 0.5,
    "train.checkpoint_every": STEPS // 2,
}


@pytest.mark.long  # three trainings in processes of their own
def test_adapters_train_on_a_mesh_go_on_after_a_stop_and_are_merged_when_they_are_loaded(tmp_path):
    one, mesh, stopped = (tmp_path / name for name in ("one", "mesh", "stopped"))
    losses = train(one, STEPS, 1, 1, TUNED)
    overrides = TUNED | WAYS["2 data x 2 fsdp x 2 tensor"][2]
    assert train(mesh, STEPS, 1, 8, overrides) == pytest.approx(losses, rel=1e-5)
    assert max(differences(one, mesh).values()) < 1e-4

    shutil.copytree(one, stopped)
    shutil.rmtree(stopped / "checkpoints" / str(STEPS))
    assert train(stopped, STEPS, 1, 1, TUNED) == losses[STEPS // 2 :]
    for item in ("params", "ema"):
        jax.tree.map(
            np.testing.assert_array_equal, open_saved(stopped).params(item), open_saved(one).params(item)
        )
    with pytest.raises(RuntimeError, match=r"config.optimizer.freeze is \[\], and .* was trained with"):
        train(stopped, STEPS + 1, 1, 1, TUNED | {"optimizer.freeze": ()})

    average, params = (arrays.named(open_saved(one).params(item)) for item in ("ema", "params"))
    assert all(is_adapter(name) or chooses(("latent_out/*",), name) for name in average)
    before = arrays.named(open_saved(one / "checkpoints" / str(STEPS // 2)).params("params"))
    assert {name for name in params if np.any(params[name] != before[name])} == average.keys()
    restored = arrays.named(load_model(str(one)).params)
    assert restored.keys() == {name for name in params if not is_adapter(name)}
    np.testing.assert_array_equal(restored["embedding"], params["embedding"])
    np.testing.assert_array_equal(restored["latent_out/kernel"], average["latent_out/kernel"])
    assert read_weights(one).adapted.besides == ("latent_out/bias", "latent_out/kernel")
    name = "backbone/layers/gen/q_proj"
    product = average[f"{name}/lora_a"] @ average[f"{name}/lora_b"]
    np.testing.assert_allclose(
        restored[f"{name}/kernel"] - params[f"{name}/kernel"], 8.0 * product, atol=1e-6
    )
