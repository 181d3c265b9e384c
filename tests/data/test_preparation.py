import collections
import dataclasses
import functools
import itertools
import json
import pathlib
import shutil
import subprocess
import sys
import types

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from tiny_qwen2 import write_tiny_qwen2

from process_gen.data import preparation
from process_gen.data.encode import encode_parts
from process_gen.data.errors import BadTrajectory, TooManyBadTrajectories, budget_of_part
from process_gen.data.formats.opening import open_stored
from process_gen.data.loader import make_loader
from process_gen.data.packing import Policy
from process_gen.data.preparation import NotPrepared, prepare_scenes
from process_gen.data.qwen2 import Qwen2Tokenizer
from process_gen.data.scenes_builder import Scenes, ScenesConfig, default_mixture, make_example, scenes_config
from process_gen.data.schema import RecordSource
from process_gen.data.sources import check_every_trajectory, open_source, prepare_source, validation_of
from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.experiment import builders, cli
from process_gen.prepare import ERRORS, prepare
from process_gen.scenes.levels import LEVELS
from process_gen.scenes.requests import categories
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Mode
from tests.data.conftest import assert_same_trajectory

LAYOUT = Layout(turns=12, trajectories=4)
VERSION = str(Scenes.VERSION)


@pytest.fixture(scope="module")
def config():
    return scenes_config(examples=40, validation=8)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, config):
    """Of a data set that was built in the workdir of a run, which holds it meanwhile."""
    folder = tmp_path_factory.mktemp("prepared")
    with preparation.lock.hold(folder, "a training"):
        prepare_scenes(config, folder)
    return folder


@pytest.fixture
def data(data_dir):
    return ConfigDict(
        dict(
            source="scenes",
            path="",
            level="default",
            mode="process",
            examples=40,
            data_dir=str(data_dir),
            seed=0,
            wrong=0.3,
            misplan=0.1,
            slip=0.08,
            detour=0.25,
            on_error="fail",
        )
    )


def copy_of(data_dir, config, tmp_path) -> pathlib.Path:
    """Copies the prepared data set; returns the folder of its files."""
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    return tmp_path / "scenes" / config.name / VERSION


def test_the_files_hold_what_the_teacher_made(data_dir, config):
    builder, summary = prepare_scenes(config, data_dir)
    for split, count in (("train", 40), ("validation", 8)):
        source = RecordSource(builder, split)
        assert len(source) == count and source.image_size == (32, 32)
        for index in range(count):
            assert_same_trajectory(source[index], make_example(config, split, index))
    assert summary.examples == {"train": 40, "validation": 8}
    assert sum(summary.steps.values()) == sum(summary.turns.values()) == 48
    assert sum(n * count for n, count in summary.steps.items()) > 1.3 * 48
    assert set(summary.longest) == {"prompt", "before", "after"}
    made = [
        make_example(config, split, i) for split, n in (("train", 40), ("validation", 8)) for i in range(n)
    ]
    assert summary.turns == collections.Counter(len(one.turns) for one in made)
    drafts = [step for one in made for step in one.steps]
    assert summary.refined == pytest.approx(np.mean([len(step.refines) for step in drafts]))
    slips = [not step.refines and not step.draft.image_ok for step in drafts]
    assert summary.slips == pytest.approx(np.mean(slips)) and 0 < summary.slips < summary.refined
    texts = [source[i].prompt for i in range(8)]
    assert max(len(scenes_tokenizer().encode(text)) for text in texts) + 2 <= summary.longest["prompt"]


def test_tfds_itself_reads_the_data_set(data_dir, config):
    builder = tfds.builder_from_directory(data_dir / "scenes" / config.name / VERSION)
    assert builder.info.metadata["mode"] == "process" and builder.info.metadata["examples"] == 40
    example = builder.as_data_source(split="validation")[3]
    assert example["prompt"].decode() == make_example(config, "validation", 3).prompt


def test_the_modes_hold_the_same_prompts_and_pictures():
    arms = [scenes_config(examples=40, mode=mode.value) for mode in Mode]
    assert len({arm.name for arm in arms}) == 3
    for index in range(40):
        process, plan_only, single = (make_example(arm, "train", index) for arm in arms)
        assert process.prompt == plan_only.prompt == single.prompt
        np.testing.assert_array_equal(plan_only.image, single.image)
        assert len(plan_only.turns) == len(single.turns) == 1
        assert single.turns[0].before is None and plan_only.turns[0].before is not None
        assert process.metadata["category"] == single.metadata["category"]


def test_examples_depend_on_seed_split_and_index_only():
    config, other = (ScenesConfig(name="a", seed=seed) for seed in (0, 1))
    prompts = [make_example(config, "train", i).prompt for i in range(20)]
    assert prompts == [make_example(config, "train", i).prompt for i in range(20)]
    assert prompts != [make_example(config, "validation", i).prompt for i in range(20)]
    assert prompts != [make_example(other, "train", i).prompt for i in range(20)]


def test_the_mixture_decides_the_categories():
    config = ScenesConfig(name="a", mixture={"counting": 3, "colors": 1})
    drawn = [make_example(config, "train", i).metadata["category"] for i in range(80)]
    assert set(drawn) == {"counting", "colors"} and 45 <= drawn.count("counting") <= 75
    for level in LEVELS:
        mixture = default_mixture(level)
        assert set(mixture) == set(categories(level)) and sum(mixture.values()) == pytest.approx(1)
        assert all(share > 0.01 for share in mixture.values())
    with pytest.raises(ValueError, match=r"unknown categories \['color'\]"):
        ScenesConfig(name="a", mixture={"color": 1})
    for weights in (dict(counting=-1, colors=1), dict(counting=0)):
        with pytest.raises(ValueError, match="data.mixture has weights of 0 and more, one above 0"):
            ScenesConfig(name="a", mixture=weights)


def test_the_name_tells_settings_and_content_apart(monkeypatch):
    changes = ({}, {"seed": 1}, {"wrong": 0.5}, {"misplan": 0.5}, {"slip": 0})
    assert len({scenes_config(**{"examples": 10, **change}).name for change in changes}) == len(changes)
    before = scenes_config(examples=10).name
    monkeypatch.setattr("process_gen.data.scenes_builder.PROBED", 3)
    assert before != scenes_config(examples=10).name, "other examples, other name"


@pytest.mark.parametrize("damage", ["truncated", "missing", "no info", "no summary"])
def test_a_damaged_data_set_is_built_again(data_dir, config, tmp_path, damage):
    path = copy_of(data_dir, config, tmp_path)
    shard = path / "scenes-train.array_record-00000-of-00001"
    whole = shard.read_bytes()
    victim = {"no info": path / "dataset_info.json", "no summary": path / "summary.json"}.get(damage, shard)
    if damage == "truncated":
        shard.write_bytes(whole[: len(whole) // 2])
    else:
        victim.unlink()
    left = path.parent / f"{VERSION}.incompleteABC"
    left.mkdir()
    builder, _ = prepare_scenes(config, tmp_path)
    assert not left.exists() and victim.exists()
    assert len(RecordSource(builder)) == 40 and shard.stat().st_size == len(whole)


def test_a_flipped_bit_is_found_when_the_record_is_read(data_dir, config, tmp_path):
    path = copy_of(data_dir, config, tmp_path)
    shard = path / "scenes-train.array_record-00000-of-00001"
    damaged = bytearray(shard.read_bytes())
    damaged[3000] ^= 1  # inside the first records
    shard.write_bytes(damaged)
    source = RecordSource(prepare_scenes(config, tmp_path)[0])
    bad = []
    for index in range(len(source)):
        try:
            assert_same_trajectory(source[index], make_example(config, "train", index))
        except BadTrajectory as error:
            bad.append(str(error))
    assert len(bad) == 1 and "record" in bad[0] and "is damaged: Corrupted" in bad[0]
    with pytest.raises(BadTrajectory, match="is damaged"):
        list(make_loader(source, scenes_tokenizer(), LAYOUT, 2, epochs=1))


def test_an_interrupted_run_leaves_nothing_that_counts(config, tmp_path, monkeypatch):
    def stop(config, split, index):
        if index == 5:
            raise KeyboardInterrupt
        return make_example(config, split, index)

    monkeypatch.setattr("process_gen.data.scenes_builder.make_example", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare_scenes(config, tmp_path)
    assert not list(tmp_path.glob(f"scenes/*/{VERSION}/dataset_info.json"))


def test_a_config_opens_its_source(data, config):
    prepare_source(data, LAYOUT, scenes_tokenizer())
    source = open_source(data, (32, 32))
    assert_same_trajectory(source[7], make_example(scenes_config(examples=40, validation=40), "train", 7))
    held_out = validation_of(source, data, (32, 32))
    assert_same_trajectory(held_out[7], open_source(data, (32, 32), "validation")[7])


def test_what_has_no_split_of_its_own_is_opened_once(tmp_path, data):
    folder = folder_of(tmp_path, 1, 2)
    mixed = {
        **data,
        "on_error": "fail",
        "sources": {"mine": {"source": "folder", "path": str(folder)}, "world": {}},
    }
    prepare_source(mixed, LAYOUT, scenes_tokenizer())
    source = open_source(mixed, (32, 32))
    held_out = validation_of(source, mixed, (32, 32))
    mine, world = (held_out.parts[name].source for name in ("mine", "world"))
    assert mine is source.parts["mine"].source
    assert world is not source.parts["world"].source and world.name.endswith("/validation")


def test_prepare_source_reports_and_checks_the_slots(data, capsys):
    source = prepare_source(data, LAYOUT, scenes_tokenizer())
    lines = capsys.readouterr().out
    assert "trajectories  40 for train, 40 for validation" in lines and "of 48" in lines
    encode = functools.partial(encode_parts, scenes_tokenizer(), LAYOUT, False)
    assert check_every_trajectory(source, "fail", encode, None) == collections.Counter(good=40)
    batch = next(iter(make_loader(source, scenes_tokenizer(), LAYOUT, 2)))
    assert batch["present"].mean() > 0.7
    with pytest.raises(ValueError, match=r"do not fit the layout: layout.before is 10 but must be \d+"):
        prepare_source(data, Layout(before=10), scenes_tokenizer())


def test_a_summary_says_what_a_row_is_too_short_for(data, config):
    summary = prepare_scenes(config, data["data_dir"])[1]
    short = Layout(turns=2, trajectories=1)
    left_out = sum(count for turns, count in summary.turns.items() if turns > 2)
    assert 0 < left_out < 48 and f"; {left_out} longer than a row of 2 are lost" in summary.describe(short)
    assert "longer than" not in summary.describe(LAYOUT)
    summary.check(short)
    long = dataclasses.replace(summary, turns={3: 40, 7: 8})
    with pytest.raises(ValueError, match="a row of layout.turns=2, the longest one 7: set layout.turns"):
        long.check(short)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"source": "scene"}, ValueError, "unknown data source 'scene'; did you mean scenes"),
        ({"seed": 5}, NotPrepared, "it does not exist.*python -m process_gen.prepare"),
        ({"level": "free64"}, ValueError, r"'free64' has images of \(64, 64\), the layout of \(32, 32\)"),
        ({"level": "hard"}, ValueError, "unknown level 'hard'"),
        ({"source": "records", "path": "/nowhere"}, NotPrepared, "/nowhere is no TFDS data set"),
        ({"source": "folder", "path": "/nowhere"}, FileNotFoundError, "trajectories.jsonl does not exist"),
    ],
)
def test_what_cannot_be_opened_says_why(data, changes, error, message):
    data.update(changes)
    with pytest.raises(error, match=message):
        open_source(data, (32, 32))


def test_records_of_any_folder_with_the_schema_open(data, data_dir, config):
    path = str(data_dir / "scenes" / config.name / VERSION)
    data.update({"source": "records", "path": path})
    assert len(open_source(data, (32, 32), "validation")) == 8
    with pytest.raises(ValueError, match="no split 'test'; it has train, validation"):
        open_source(data, (32, 32), "test")


def test_records_of_steps_are_refused(tmp_path):
    """As earlier versions wrote them."""
    image = tfds.features.Tensor(shape=(4, 4, 3), dtype=np.uint8)
    steps = tfds.features.Sequence({"sketch": image, "refined": image})
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity("old", tfds.core.Version("1.0.0"), str(tmp_path), module_name="m"),
        features=tfds.features.FeaturesDict({"prompt": tfds.features.Text(), "steps": steps}),
        split_dict=tfds.core.SplitDict([tfds.core.SplitInfo(name="train", shard_lengths=[1], num_bytes=1)]),
    )
    with pytest.raises(ValueError, match="old/1.0.0 holds trajectories of an earlier version, in steps"):
        RecordSource(types.SimpleNamespace(info=info))


def test_the_entry_point_prepares_and_refuses(tmp_path):
    def run(*flags):
        command = [sys.executable, "-m", "process_gen.prepare", "--config=configs/scenes.py:debug", *flags]
        root = pathlib.Path(__file__).parents[2]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)

    done = run(f"--config.data.data_dir={tmp_path}")
    assert done.returncode == 0 and "64 for train" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1].split()[0] == "useful" and "padding in prompts" in done.stdout
    (tmp_path / "mine").mkdir()
    line = json.dumps({"prompt": "a", "turns": [{"image": "../x"}]})
    (tmp_path / "mine" / "trajectories.jsonl").write_text(line)
    failed = run("--config.data.source=folder", f"--config.data.path={tmp_path / 'mine'}")
    assert failed.returncode == 2 and "line 1: turns[0].image leaves the folder" in failed.stderr


def test_the_texts_are_counted_anew_for_another_tokenizer(data, config, tmp_path, capsys):
    tokenizer = Qwen2Tokenizer(write_tiny_qwen2(tmp_path / "qwen2", size=290))
    wide = Layout(prompt=300, before=300, after=300, turns=12)
    source = prepare_source(data, wide, tokenizer)
    scenes = prepare_scenes(config, data["data_dir"])[1].longest
    (kept,) = pathlib.Path(data["data_dir"]).rglob(f"longest_{tokenizer.fingerprint}.json")
    longest = json.loads(kept.read_text())
    assert all(longest[slot] > scenes[slot] for slot in scenes)
    assert f"prompt {longest['prompt']} of 300" in capsys.readouterr().out
    assert sum(len(batch["present"]) for batch in make_loader(source, tokenizer, wide, 2, epochs=1)) > 0
    kept.write_text(json.dumps(longest | {"before": 301}))
    with pytest.raises(ValueError, match="layout.before is 300 but must be 301"):
        prepare_source(data, wide, tokenizer)


def folder_of(path, *turns, name="trajectories.jsonl"):
    """A folder of trajectories, each with so many drafts of one image; a text stands for a line as it is."""
    path.mkdir(exist_ok=True)
    PIL.Image.new("RGB", (9, 9)).save(path / "a.png")
    lines = [
        count
        if isinstance(count, str)
        else json.dumps({"prompt": "a", "turns": [{"image": "a.png"}] * count})
        for count in turns
    ]
    (path / name).write_text("\n".join(lines))
    return path


MISSING = json.dumps({"prompt": "a", "turns": [{"image": "b.png"}]})


def test_preparing_a_folder_finds_texts_that_are_too_long(tmp_path, toy_tokenizer):
    turns = [{"image": "a.png", "inspect": "circle " * 40}]
    source = open_stored(folder_of(tmp_path, json.dumps({"prompt": "a", "turns": turns})), LAYOUT.image_size)
    encode = functools.partial(encode_parts, toy_tokenizer, LAYOUT, False)
    assert check_every_trajectory(source, "skip", encode, 1.0) == collections.Counter(bad=1)
    with pytest.raises(BadTrajectory, match="the inspection has 40 tokens, 22 fit"):
        check_every_trajectory(source, "fail", encode, None)
    with pytest.raises(TooManyBadTrajectories, match="1 of 1 trajectories are bad, 50.00% may be; .* 40"):
        check_every_trajectory(source, "skip", encode, None)


def test_what_is_too_long_for_a_row_is_counted_by_itself(tmp_path, toy_tokenizer, caplog):
    layout = Layout(turns=2, trajectories=1)
    encode = functools.partial(encode_parts, toy_tokenizer, layout, False)
    source = open_stored(folder_of(tmp_path / "some", 1, 2, 3, 5, MISSING, 1), layout.image_size)
    assert check_every_trajectory(source, "skip", encode, None) == collections.Counter(
        good=3, bad=1, overlong=2
    )
    assert "line 3: 3 turns, a row has 2" in caplog.text and "line 4: 5 turns" in caplog.text
    none = open_stored(folder_of(tmp_path / "none", 3, MISSING, 5, 4), layout.image_size)
    with pytest.raises(
        TooManyBadTrajectories, match="a row of 2 turns, the longest one has 5: .*turns=5.*line 3: "
    ):
        check_every_trajectory(none, "skip", encode, None)


@pytest.fixture
def debug_config():
    config = cli.load_config(str(pathlib.Path(__file__).parents[2] / "configs" / "scenes.py:debug"))
    with config.unlocked():
        config.data.update(dict(source="folder", on_error="skip"))
        config.layout.update(dict(turns=3, trajectories=2))
    return config


def test_prepare_reads_every_source_of_a_mixture(tmp_path, debug_config, capsys):
    """Though the config's own source, which the other entry has, is the scenes."""
    debug_config.data.data_dir, debug_config.data.examples = str(tmp_path / "data"), 4
    with debug_config.unlocked():
        debug_config.data.source, debug_config.data.on_error = "scenes", "fail"
        debug_config.data.sources = {
            "mine": {"source": "folder", "path": str(folder_of(tmp_path / "mine", 1, MISSING))},
            "world": {},
        }
    with pytest.raises(BadTrajectory, match="line 2: .*'b.png'"):
        prepare(debug_config)
    folder_of(tmp_path / "mine", 1, 2)
    prepare(debug_config)
    assert "mine, world: 6 good trajectories" in capsys.readouterr().out


def test_prepare_counts_every_loss(tmp_path, debug_config, capsys):
    lines = (1, 2, 4, MISSING, "{", 1, 3, 1)
    debug_config.data.path = str(folder_of(tmp_path, *lines))
    prepare(debug_config)
    out = capsys.readouterr().out
    wanted = "6 good trajectories (1 longer than a row, and split), 2 bad ones, 0 longer than a row, and lost"
    assert f"{tmp_path}: {wanted}\n" in out
    assert "packing, images of 32 x 32" in out and out.splitlines()[-1].startswith("useful ")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((MISSING,) * 8, "8 of 8 trajectories are bad, 50.00% may be; the last one: .*line 8: .*'b.png'"),
        ((8,) * 8, "a row of 3 turns, the longest one has 8: set config.layout.turns=8"),
        (("{",) * 5 + (1,) * 3, "5 of 8 lines of .* are bad"),
        ((1, 1, *(MISSING,) * 6), "6 of 8 trajectories are bad"),
    ],
)
def test_prepare_refuses_what_training_would(tmp_path, debug_config, lines, message):
    debug_config.data.path, debug_config.data.on_long = str(folder_of(tmp_path, *lines)), "drop"
    with pytest.raises(ERRORS, match=message):
        prepare(debug_config)
    config = debug_config
    layouts = builders.build_layouts(config)
    (layout,) = layouts.values()
    with pytest.raises(TooManyBadTrajectories):  # so would training
        source = open_stored(config.data.path, layout.image_size, bad="skip")
        policy = Policy("skip", budget_of_part(len(source), len(source)), "drop")
        list(
            itertools.islice(
                make_loader(source, scenes_tokenizer(), layout, 2, prefetch=0, policy=policy), 40
            )
        )


def test_a_whole_data_set_is_read_where_nothing_can_be_written(data_dir, config, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    first = prepare_scenes(config, data_dir)[1]
    for name in ("lock.hold", "_build"):
        monkeypatch.setattr(f"process_gen.data.preparation.{name}", refuse)
    builder, summary = prepare_scenes(config, str(data_dir))
    assert summary == first and summary.examples == {"train": 40, "validation": 8}
    assert len(RecordSource(builder)) == 40 and not list(data_dir.rglob(".lock*"))
