"""A turn's fields of one's own: from the record to a loss."""

import json

import jax
import numpy as np
import PIL.Image
import pytest

from process_gen import losses
from process_gen.data.errors import BadTrajectory
from process_gen.data.formats import writers
from process_gen.data.formats.opening import open_stored
from process_gen.data.loader import make_loader
from process_gen.data.scenes_builder import with_kept
from process_gen.data.sources import open_source, prepare_source
from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.experiment import builders, cli
from process_gen.losses import LossTable, Term
from process_gen.models.config import NO_RANDOM_DROPS
from process_gen.models.unroll import blank_outputs
from process_gen.scenes import render, teach
from process_gen.scenes.graph import Scene
from process_gen.scenes.levels import LEVELS
from process_gen.scenes.prompts import sample_request
from process_gen.scenes.requests import categories
from process_gen.scenes.teacher import baseline
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.controls import labels
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import targets_of
from tests.models.tiny import IDS, VOCAB, make_model
from tests.models.tiny import layout as make_layout

FIELDS = {"mask": "mask", "quality": "number", "checked": "flag", "reference": "image"}
LAYOUT = make_layout(prompt=40, fields=tuple(FIELDS.items()))


@pytest.fixture
def folder(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    mask = np.zeros((8, 8), np.uint8)
    mask[:4] = 255
    for name, pixels in (("a.png", np.full((8, 8, 3), 9, np.uint8)), ("mask.png", mask)):
        PIL.Image.fromarray(pixels).save(mine / name)
    turns = [
        {
            "image": "a.png",
            "mask": "mask.png",
            "quality": 0.5,
            "checked": True,
            "reference": {"path": "a.png"},
        },
        {"image": "a.png"},
    ]
    (mine / "trajectories.jsonl").write_text(json.dumps({"prompt": "a circle", "turns": turns}))
    return mine


@pytest.mark.parametrize("form", ["folder", "parquet", "webdataset"])
def test_fields_of_ones_own_reach_the_batch_and_a_loss(folder, tmp_path, toy_tokenizer, form, caplog):
    source = open_stored(folder, (8, 8), fields=FIELDS)
    if form != "folder":
        write = {"parquet": writers.write_parquet, "webdataset": writers.write_webdataset}[form]
        write(tmp_path / form, writers.objects(source))
        source = open_stored(tmp_path / form, (8, 8), fields=FIELDS)
    assert "unknown field" not in caplog.text and not source[0].metadata
    (batch,) = make_loader(source, toy_tokenizer, LAYOUT, 1, epochs=1)
    spec = Batch.spec(LAYOUT, 1)
    for name, wanted in spec.extra.items():
        assert (batch["extra"][name].shape, batch["extra"][name].dtype) == (wanted.shape, wanted.dtype)
    extra = batch["extra"]
    assert (extra["mask"][0, 0, :4] == 255).all() and not extra["mask"][0, 0, 4:].any()
    assert extra["quality"][0].tolist() == [0.5, 0, 0, 0, 0] and extra["checked"][0, 0]
    assert (extra["reference"][0, 0] == 9).all()
    assert not any(value[0, 1:].any() for value in extra.values()), "what a turn lacks is blank"

    @losses.register("test_masked_flow")
    def masked_flow(outputs, batch, labels, key, *, stage):
        values = ((outputs.velocity - outputs.target) ** 2).mean((-1, -3))
        mask = batch.field("mask").reshape(*values.shape[:2], 2, 4, 2, 4).max((3, 5)) > 0
        return Term(values, mask.reshape(values.shape) * batch.field("quality")[..., None])

    model, _ = make_model(prompt=40, fields=LAYOUT.fields)
    rows = jax.tree.map(np.asarray, Batch(**batch))
    assert rows.before_tokens.max() < VOCAB
    table = LossTable({"mine": dict(loss="test_masked_flow", stage="sketch", weight=1.0)})
    outputs = blank_outputs(model, rows, jax.random.key(0), NO_RANDOM_DROPS)
    sums, counts = table.terms(outputs, rows, labels(rows, IDS), jax.random.key(0))
    assert counts["mine"] == 2 * 0.5 and sums["mine"] > 0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mask", "none.png", "turns[0].mask does not exist: 'none.png'"),
        ("mask", 3, "turns[0].mask is no image file"),
        ("mask", "../a.png", "turns[0].mask leaves the folder: '../a.png'"),
        ("quality", "high", "turns[0].quality is no number: 'high'"),
        ("checked", 1, "turns[0].checked is no flag: 1"),
    ],
)
def test_a_field_that_is_not_what_it_should_be_is_named(folder, field, value, message):
    line = {"prompt": "a circle", "turns": [{"image": "a.png", field: value}]}
    (folder / "trajectories.jsonl").write_text(json.dumps(line))
    with pytest.raises(BadTrajectory) as found:
        open_stored(folder, (8, 8), fields=FIELDS)[0]
    assert message in str(found.value) and "line 1" in str(found.value)


@pytest.mark.parametrize("level", LEVELS)
def test_what_a_turn_of_the_scenes_world_leaves_is_known_from_the_scene_graphs(level):
    odds = dict(wrong=0.3, misplan=0.2, slip=0.2, detour=0.6)
    changed = 0
    for number in range(40):
        rng = np.random.default_rng(number)
        request = sample_request(rng, level, categories(level)[number % len(categories(level))])
        turns = with_kept(teach(request, rng, **odds)).turns
        before = render(Scene(()), level)
        for turn, target in zip(turns, targets_of(turns), strict=True):
            kept = turn.extra["kept"] > 0
            if target >= 0:
                np.testing.assert_array_equal(turns[target].image[kept], before[kept])
                assert (turns[target].image[~kept] != before[~kept]).any() or not (~kept).any()
                changed += (~kept).any()
            before = turn.image
    assert changed > 60
    for mode in ("plan_only", "single_pass"):
        (turn,) = with_kept(baseline(request, rng, mode)).turns
        assert (turn.extra["kept"] == 0).any() and (turn.image != before).any()


def test_the_scenes_source_has_the_mask_for_a_loss(tmp_path):
    config = cli.load_config("configs/scenes.py:debug")
    with config.unlocked():
        config.data.update(dict(examples=4, data_dir=str(tmp_path), fields=dict(kept="mask")))
    layout = builders.build_layout(config)
    prepare_source(config.data, layout, scenes_tokenizer())
    (batch, *_) = make_loader(
        open_source(config.data, layout.image_size), scenes_tokenizer(), layout, 1, epochs=1
    )
    kept = Batch(**batch).field("kept")
    assert kept.shape == (1, layout.turns, 32, 32) and {0, 255} == {*np.unique(kept)}


def test_fields_of_a_config_that_cannot_be_are_refused(tmp_path):
    for fields, message in (
        ({"mask": "picture"}, "data.fields.mask must be one of image, mask, number, flag, got 'picture'"),
        ({"image": "image"}, "config.data.fields has 'image'"),
        ({"a/b": "number"}, "config.data.fields has 'a/b'"),
    ):
        config = cli.load_config("configs/scenes.py:debug")
        with config.unlocked():
            config.data.fields = fields
        with pytest.raises(builders.ConfigError, match=message):
            builders.build_layout(config)
    for fields in (FIELDS, {"kept": "image"}, {"kept": "mask", "quality": "number"}):
        with pytest.raises(ValueError, match=r'one field of its own, dict\(kept="mask"\)'):
            open_source({"source": "scenes", "fields": fields}, (32, 32))
    assert Layout().fields == ()
