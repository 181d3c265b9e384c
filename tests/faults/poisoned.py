"""The smallest scenes config, with a loss that is not a number for some of the batches."""

import jax.numpy as jnp

from configs import scenes
from process_gen import losses


@losses.register("poison")
def poison(outputs, batch, labels, key, *, stage):
    """NaN where the ids of all prompts add up to a multiple of three, 0 elsewhere."""
    del outputs, labels, key, stage
    bad, turns = batch.prompt_tokens.sum() % 3 == 0, batch.present.shape
    return losses.Term(jnp.full(turns, jnp.where(bad, jnp.nan, 0.0)), jnp.ones(turns))


def get_config():
    config = scenes.get_config("debug")
    with config.unlocked():
        config.losses.poison = dict(loss="poison", stage="plan", weight=1.0)
    return config
