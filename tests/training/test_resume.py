from __future__ import annotations

import pytest

from process_gen.experiment import builders, cli
from process_gen.training.resume import check_same_run, differences

VERSIONS = {"jax": "1", "git": "abc"}


def config(**changes):
    fields = builders.to_json(cli.load_config("configs/scenes.py:debug"))
    for key, value in changes.items():
        group, _, leaf = key.partition("__")
        fields[group][leaf] = value
    return fields


def check(now, stored=None, versions=VERSIONS):
    check_same_run(
        {"config": stored or config(), "versions": VERSIONS}, now, versions, "runs/a/checkpoints/4"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layout__before": 41}, ["config.layout.before is 41", "with 40", "--config.layout.before=40"]),
        ({"layout__corrections": 2}, ["config.layout.corrections is 2", "trained with 1"]),
        ({"model__size": "scenes_s"}, ["config.model.size", "'debug'"]),
        ({"data__wrong": 0.5}, ["config.data.wrong", "0.15"]),
        ({"train__batch_size": 8}, ["config.train.batch_size", "--config.train.batch_size=2"]),
        ({"optimizer__moment_dtype": "bfloat16"}, ["config.optimizer.moment_dtype is 'bfloat16'"]),
        ({"optimizer__name": "adamw"}, ["config.optimizer.name", "'muon'"]),
        ({"optimizer__freeze": ["vit/*"]}, ["config.optimizer.freeze is ['vit/*']", "trained with []"]),
        ({"model__lora": {"rank": 4}}, ["config.model.lora.rank is 4", "trained with 0"]),
    ],
)
def test_another_model_or_other_data_is_another_run(change, words):
    with pytest.raises(builders.ConfigError) as error:
        check(config(**change))
    for word in (*words, "runs/a/checkpoints/4", "--workdir"):
        assert word in str(error.value)


def test_how_it_is_trained_may_change_and_is_logged(caplog):
    with caplog.at_level("INFO", logger="absl"):
        fields = dict(optimizer__learning_rate=1e-5, train__steps=99, train__unroll="scan")
        check(config(**fields, mesh__fsdp=8, model__remat="full"))
    for key in ("optimizer.learning_rate", "train.steps", "train.unroll", "mesh.fsdp", "model.remat"):
        assert f"config.{key} was" in caplog.text


def test_the_weights_that_a_run_began_from_stay_what_they_are(caplog):
    now = config(train__init="other")
    check(now, config(train__init="mine"))
    assert now["train"]["init"] == "mine"
    assert "config.train.init='other' is ignored: runs/a/checkpoints/4 began from 'mine'" in caplog.text


def test_rows_of_losses_and_their_options_that_come_and_go_are_logged(caplog):
    now = config()
    clean = now["losses"]["sketch_flow"] | {"timesteps": "clean"}
    stored = now | {"losses": now["losses"] | {"sketch_flow": clean, "mine": {"loss": "text_kl"}}}
    with caplog.at_level("INFO", logger="absl"):
        check(now, stored)
        check(stored, now)
    for words in (
        "was 'clean' until here and is not set",
        "was not set until here and is 'clean' from",
    ):
        assert f"config.losses.sketch_flow.timesteps {words}" in caplog.text
    assert "config.losses.mine was {'loss': 'text_kl'} until here and is not set" in caplog.text


@pytest.mark.parametrize("source", ["folder", "records"])
def test_a_run_whose_stored_config_has_the_keys_of_scenes_goes_on_without_them(source):
    now = builders.to_json(cli.load_config("configs/bagel_7b.py:paper"))
    now["data"]["source"] = source
    scenes = dict(level="default", examples=62_000, data_dir="data", seed=0)
    odds = dict(wrong=0.25, misplan=0.0, slip=0.05, detour=0.2)
    stored = now | {"data": now["data"] | scenes | odds}
    check(now, stored)
    check(stored, now)


def test_other_versions_are_a_warning(caplog):
    check(config(), versions={"jax": "2", "git": "abc"})
    assert "jax is 2" in caplog.text and "with 1" in caplog.text and "git" not in caplog.text


def test_keys_that_one_side_lacks_are_no_difference():
    assert differences({"a": 1, "b": {"c": 1, "d": 2}}, {"b": {"c": 3}, "e": 4}) == [("b.c", 1, 3)]


def test_a_part_that_comes_or_goes_is_a_difference():
    vit = {"width": 48}
    assert differences({"model": {"vit": None}}, {"model": {"vit": vit}}) == [("model.vit", None, vit)]
    assert differences({"model": {"vit": vit}}, {"model": {"vit": None}}) == [("model.vit", vit, None)]
