"""Frozen parameters, rates by group and adapters: what moves, what stays, and what takes no memory."""

from __future__ import annotations

import pathlib

import jax
import numpy as np
import pytest

from process_gen.checkpoints import arrays
from process_gen.common.patterns import chooses
from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.distributed import sharding
from process_gen.experiment import builders, cli
from process_gen.training.program import build_recipe
from process_gen.training.step import Recipe, init_state, make_train_step
from process_gen.training.trained import describe, frozen, merged, trained
from process_gen.trajectory.batch import Batch
from tests.data.fake import fake_batch

ROOT = pathlib.Path(__file__).parents[2]
GEN = ("*", "!backbone/*gen*")
"""Everything but the generation expert."""


def make_config(**changes):
    config = cli.load_config(f"{ROOT}/configs/scenes.py:debug")
    with config.unlocked():
        config.update_from_flattened_dict({"optimizer.warmup_steps": 0} | changes)
    return config


def make_recipe(config) -> Recipe:
    builders.check(config)
    return build_recipe(config, builders.build_model(config, scenes_tokenizer()))


def make_state(recipe: Recipe):
    spec = Batch.spec(recipe.model.layout, 1)
    return jax.jit(lambda key: sharding.unbox(init_state(recipe, spec, key)))(jax.random.key(0))


def stepped(config, steps: int = 2):
    """The recipe, the state before and after, and the metrics of the last step."""
    recipe = make_recipe(config)
    first = state = make_state(recipe)
    step = jax.jit(make_train_step(recipe))
    for seed in range(steps):
        state, metrics = step(state, Batch(**fake_batch(recipe.model.layout, 2, seed=seed)))
    return recipe, first, state, metrics


def moved(first, state) -> dict[str, bool]:
    before, after = arrays.flatten(first.params), arrays.flatten(state.params)
    return {name: bool(np.any(before[name] != after[name])) for name in before}


@pytest.mark.parametrize(
    ("optimizer", "freeze", "changes"),
    [
        ("adamw", ("backbone/*und*",), {"train.accumulate": 2}),
        pytest.param("muon", GEN, {"optimizer.moment_dtype": "bfloat16"}, marks=pytest.mark.slow),
    ],
)
def test_what_is_frozen_stays_bit_for_bit_and_has_neither_moments_nor_an_average(optimizer, freeze, changes):
    config = make_config(**{"optimizer.name": optimizer, "optimizer.freeze": freeze} | changes)
    recipe, first, state, metrics = stepped(config)
    for name, did in moved(first, state).items():
        if chooses(freeze, name):
            assert not did, name
    part = arrays.flatten(trained(state.params, freeze))
    assert sum(moved(first, state).values()) >= len(part) - 2  # a bias of keys need not
    assert arrays.flatten(state.ema).keys() == part.keys()
    moments = [name for name in arrays.flatten(state.opt_state) if {"mu", "nu"} & set(name.split("/"))]
    assert moments and all(any(name.endswith(own) for own in part) for name in moments)
    found = {name.partition("/")[2] for name in metrics if name.startswith("grad_norm/")}
    assert found == ({"gen"} if freeze == GEN else {"gen", "embedding", "head", "latent"})
    jax.tree.map(np.testing.assert_array_equal, frozen(state.average, freeze), frozen(first.params, freeze))
    assert metrics["finite"] == 1


def test_parts_of_a_tree_come_apart_and_together_again():
    tree = {"vit": {"a": np.zeros(3), "b": np.ones(2)}, "head": np.ones((2, 2))}
    part = trained(tree, ("vit/a",))
    assert arrays.flatten(part).keys() == {"vit/b", "head"} and trained(tree, ()) is tree
    assert arrays.flatten(frozen(tree, ("vit/a",))).keys() == {"vit/a"} and frozen(tree, ()) == {}
    whole = merged(tree, jax.tree.map(lambda x: x + 1, part))
    assert jax.tree.map(lambda x: float(x.mean()), whole) == {"vit": {"a": 0, "b": 2}, "head": 2}
    assert describe(tree, ("vit/a",)) == "6 of 9 parameters are trained (66.667%), 3 are frozen"


def test_the_last_pattern_that_matches_decides():
    assert chooses(("*", "!backbone/*gen*"), "vit/layers/fc1/kernel")
    assert not chooses(("*", "!backbone/*gen*"), "backbone/norms_gen/scale")
    assert chooses(("!vit/*", "vit/*"), "vit/a") and not chooses((), "vit/a")


@pytest.mark.slow  # two train steps are compiled
def test_a_frozen_matrix_costs_no_products_of_its_gradient():
    def flops(**changes) -> float:
        recipe = make_recipe(make_config(**changes))
        spec = Batch.spec(recipe.model.layout, 2)
        state = jax.eval_shape(lambda: make_state(recipe))
        return jax.jit(make_train_step(recipe)).lower(state, spec).compile().cost_analysis()["flops"]

    adamw = {"optimizer.name": "adamw", "model.scan_unroll": 2}
    assert flops(**adamw, **{"optimizer.freeze": GEN}) < 0.95 * flops(**adamw)


def test_a_group_takes_its_share_of_the_rate():
    groups = {
        "gen": {"pattern": ("backbone/*gen*",), "rate": 0.25},
        "words": {"pattern": "head/*", "rate": 2},
    }
    made = {}
    for name, given in (("all", {}), ("groups", groups)):
        config = make_config(**{"optimizer.name": "adamw"})
        with config.unlocked():
            config.optimizer.groups = given
        optimizer, _ = builders.build_optimizer(config)
        params = {
            "backbone": {"norms_gen": {"scale": 1.0}, "norms_und": {"scale": 1.0}},
            "head": {"kernel": 1.0},
        }
        params = jax.tree.map(np.float32, params)
        made[name], _ = optimizer.update(params, optimizer.init(params), params)
    share = jax.tree.map(lambda a, b: float(a / b), made["groups"], made["all"])
    assert share == {
        "backbone": {"norms_gen": {"scale": 0.25}, "norms_und": {"scale": 1}},
        "head": {"kernel": 2},
    }


GROUP = {"pattern": "*gen*", "rate": 1}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("freeze", ("und",), r"has 'und', which matches no parameter .* nearest are backbone/layers/und"),
        ("freeze", (1,), "optimizer.freeze must be patterns of names"),
        ("freeze", ("vit/*",), r"'vit/\*', which matches no parameter"),  # the layout has no room for it
        ("freeze", ("*",), "freezes every parameter"),
        ("groups", {"gen": {"pattern": "*gen*", "rat": 1}}, "groups.gen has no key 'rat'; did you mean rate"),
        ("groups", {"gen": {"pattern": "*gen*"}}, "groups.gen lacks rate"),
        ("groups", {"gen": GROUP | {"rate": 0}}, "groups.gen.rate must be a number above 0 .*got 0"),
        ("groups", {"gen": GROUP | {"pattern": "*gem*"}}, r"groups.gen.pattern has '\*gem\*', which matches"),
        ("groups", {"a": GROUP, "b": GROUP | {"pattern": "*layers*"}}, "is in 'a' and in 'b'; take it out"),
        ("lora", {"rank": -1}, "model.lora.rank must be a whole number"),
        ("lora", {"rank": 2, "patterns": ("head/kernel",)}, "model.lora.patterns has 'head/kernel', which"),
        ("lora", {"rank": 2, "alpha": 0.0}, "model.lora.alpha must be a number above 0"),
        ("lora", {"rnk": 2}, "model.lora has no field 'rnk'; did you mean rank"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_by_name(key, value, message):
    config = make_config()
    with config.unlocked():
        config["model" if key == "lora" else "optimizer"][key] = value
    with pytest.raises(builders.ConfigError, match=message):
        builders.check(config)
