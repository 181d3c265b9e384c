"""The same trajectories in every form give the same batches, and nothing is lost on the way."""

import dataclasses
import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile

import fsspec
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from process_gen.data.errors import BadTrajectory
from process_gen.data.formats import parquet, places, writers
from process_gen.data.formats.jsonl import LISTING
from process_gen.data.formats.opening import FORMATS, detect, open_rows, open_stored
from process_gen.data.formats.webdataset import INDEX
from process_gen.data.loader import make_loader
from process_gen.data.mixture import hold_out
from process_gen.data.scenes_builder import make_example, scenes_config
from process_gen.data.sources import open_source
from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.reports.listing import Listing
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.sampled import SampledTrajectory
from tests.data.conftest import assert_same_trajectory

COUNT = 40
SIZE = (32, 32)
LAYOUT = Layout(image_size=SIZE, prompt=96, before=128, after=96, turns=6, trajectories=2)
WRITERS = {
    "folder": writers.write_folder,
    "parquet": writers.write_parquet,
    "webdataset": writers.write_webdataset,
}


@pytest.fixture(scope="module")
def trajectories():
    config = scenes_config(examples=COUNT, wrong=0.4)
    return [make_example(config, "train", index) for index in range(COUNT)]


def written(form, path, trajectories):
    """Writes trajectories in a form; returns how many."""
    if form == "records":
        return writers.write_records(path, trajectories, SIZE)
    return WRITERS[form](path, map(writers.object_of, trajectories))


@pytest.fixture(scope="module")
def sets(trajectories, tmp_path_factory):
    """Every form of the same trajectories, by name."""
    root = tmp_path_factory.mktemp("sets")
    for form in (*WRITERS, "records"):
        assert written(form, root / form, trajectories) == COUNT
    return root


def opened(root, name, form=""):
    return open_source({"source": form or name, "path": str(root / name), "on_error": "fail"}, SIZE)


def test_the_batches_are_the_same_bit_for_bit(sets, trajectories):
    found = {}
    for form in (*WRITERS, "records"):
        loader = make_loader(opened(sets, form), scenes_tokenizer(), LAYOUT, 2, seed=3, epochs=1)
        found[form] = list(loader)
    direct = list(make_loader(trajectories, scenes_tokenizer(), LAYOUT, 2, seed=3, epochs=1))
    for form, batches in found.items():
        assert len(batches) == len(direct), form
        for one, other in zip(batches, direct, strict=True):
            assert one.keys() == other.keys()
            for name in one:
                np.testing.assert_array_equal(one[name], other[name], err_msg=f"{form}: {name}")
                assert one[name].dtype == other[name].dtype


@pytest.mark.parametrize("form", WRITERS)
def test_a_trajectory_comes_back_whole(sets, trajectories, form):
    source = open_stored(sets / form, SIZE)
    assert detect(sets / form) == form and len(source) == COUNT
    for index in (0, 7, COUNT - 1):
        assert_same_trajectory(source[index], trajectories[index])
    assert source.turns() == sum(len(one.turns) for one in trajectories)


def test_the_form_is_found_by_what_is_there(sets, tmp_path):
    assert detect(sets / "records") == "records"
    assert detect(sets / "parquet" / "part-00000.parquet") == "parquet"
    assert detect(sets / "webdataset" / "shard-00000.tar") == "webdataset"
    with pytest.raises(FileNotFoundError, match="holds no trajectories: neither trajectories.jsonl"):
        detect(tmp_path)
    for form in FORMATS:
        with pytest.raises(FileNotFoundError, match="nothing"):
            open_rows(tmp_path / "nothing", form)


@pytest.fixture
def odd(tmp_path):
    """A folder with what a form may lose: JPEG, unknown fields, provenance, weights, an edit."""
    folder = tmp_path / "odd"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    for name in ("a.jpg", "b.png", "in.webp", "mask.png"):
        PIL.Image.fromarray(pixels).save(folder / name)
    lines = [
        {
            "uid": "one",
            "prompt": "a cat",
            "turns": [
                {
                    "instruction": "a",
                    "description": "b",
                    "image": "a.jpg",
                    "inspect": "no",
                    "mask": {"path": "mask.png"},
                },
                {"refine": "c", "image": "b.png", "image_weight": 0.7, "score": [1, 2]},
            ],
            "metadata": {"a": {"b": [1, None]}},
            "source": "mine",
            "licence": "CC0",
            "author": "human",
            "rating": {"stars": 5},
            "verdict": {"ok": True, "constraints": []},
            "seconds": 1.5,
        },
        {
            "uid": "two",
            "image": "in.webp",
            "instruction": "red",
            "turns": [{"image": "a.jpg", "before_weight": 0}],
        },
        {"prompt": "old", "steps": [{"sketch": "a.jpg", "inspect": "x", "refine": "y", "refined": "b.png"}]},
        {"uid": "words", "prompt": "c", "turns": [{"image": "a.jpg", "inspect": "no"}, {"refine": "do it"}]},
    ]
    (folder / LISTING).write_text("\n".join(json.dumps(line) for line in lines))
    return folder


@pytest.mark.parametrize("form", WRITERS)
def test_nothing_is_lost_in_any_form(odd, tmp_path, form):
    source = open_stored(odd, SIZE)
    first = list(writers.objects(source))
    WRITERS[form](tmp_path / form, first)
    again = list(writers.objects(open_stored(tmp_path / form, SIZE)))
    assert without_paths(again) == without_paths([writers.with_sums(one) for one in first])
    turns = again[0]["turns"]
    assert turns[0]["image"]["bytes"] == (odd / "a.jpg").read_bytes(), "no image is encoded again"
    assert turns[0]["mask"]["bytes"] == (odd / "mask.png").read_bytes()
    assert turns[0]["sha256"] == hashlib.sha256((odd / "a.jpg").read_bytes()).hexdigest()
    assert "image" not in again[3]["turns"][1]
    pixels = [open_stored(path, SIZE)[1].prompt_image for path in (odd, tmp_path / form)]
    np.testing.assert_array_equal(*pixels)


def without_paths(value):
    if isinstance(value, dict):
        return {key: without_paths(one) for key, one in value.items() if key != "path"}
    return [without_paths(one) for one in value] if isinstance(value, list) else value


def test_small_row_groups_parts_and_shards(odd, tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "GROUP_BYTES", 1)
    monkeypatch.setattr(writers, "PART_BYTES", 1)
    monkeypatch.setattr(writers, "SHARD_BYTES", 1)
    monkeypatch.setattr(parquet, "CACHE_BYTES", 1)
    monkeypatch.setattr(parquet, "OPEN_FILES", 2)
    for form in ("parquet", "webdataset"):
        source = open_stored(odd, SIZE)
        WRITERS[form](tmp_path / form, writers.objects(source))
        found = open_stored(tmp_path / form, SIZE)
        assert len(list((tmp_path / form).glob("[ps]*"))) == 4
        for index in (3, 0, 2, 1):
            assert found[index].uid == source[index].uid
            np.testing.assert_array_equal(found[index].turns[0].image, source[index].turns[0].image)
        assert [os.path.basename(found.rows.where(i)) for i in (0, 3)] == {
            "parquet": ["part-00000.parquet, row 0", "part-00003.parquet, row 0"],
            "webdataset": ["shard-00000.tar, key 000000000", "shard-00003.tar, key 000000003"],
        }[form]
        copy = pickle.loads(pickle.dumps(found))
        assert copy[2].uid == found[2].uid, "another process can have it"


def test_the_texts_of_a_parquet_file_are_read_without_its_images(sets, monkeypatch):
    rows = open_rows(sets / "parquet")
    asked = []
    read = pq.ParquetFile.read_row_group

    def spy(self, group, columns=None, **options):
        asked.append(columns)
        return read(self, group, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    row = rows.text(3)
    assert all("bytes" not in leaf for leaf in asked[0])
    whole = rows[3]
    assert row["turns"][0]["instruction"] == whole["turns"][0]["instruction"]
    assert row["turns"][0]["image"]["bytes"] != whole["turns"][0]["image"]["bytes"]


def test_columns_that_somebody_else_wrote_are_read(tmp_path):
    png = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), (1, 2, 3)).save(png, "PNG")
    rows = [
        {"prompt": "a", "turns": [{"image": png.getvalue()}], "note": "x"},
        {"prompt": "b", "turns": [{"image": png.getvalue()}], "note": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mine.parquet")
    source = open_stored(tmp_path / "mine.parquet", SIZE)
    assert source[1].prompt == "b" and (source[1].image == (1, 2, 3)).all()
    assert source[0].metadata["note"] == "x"
    rows = [{"prompt": "c", "turns": [{"image": {"bytes": png.getvalue()}, "inspect": "well"}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "without_paths.parquet")
    source = open_stored(tmp_path / "without_paths.parquet", SIZE)
    assert (source[0].image == (1, 2, 3)).all() and source[0].turns[0].after == "well"
    rows = [{"prompt": "d", "turns": [{"image": png.getvalue()}, None], "extra_images": ["theirs"]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "null.parquet")
    with pytest.raises(BadTrajectory, match=r"turns\[1\] is not an object"):
        open_stored(tmp_path / "null.parquet", SIZE)[0]
    rows[0]["turns"].pop()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "theirs.parquet")
    assert open_stored(tmp_path / "theirs.parquet", SIZE)[0].metadata["extra_images"] == ["theirs"]


def test_what_changed_is_another_set_whatever_its_length(trajectories, tmp_path):
    first = trajectories[0]
    changed = [dataclasses.replace(first, prompt="X" + first.prompt[1:]), *trajectories[1:]]
    for form in ("parquet", "webdataset", "records"):
        names = []
        for place, found in (("a", trajectories), ("b", trajectories), ("c", changed)):
            written(form, tmp_path / form / place, found)
            names.append(opened(tmp_path / form, place, form).name)
        assert names[0] == names[1] != names[2]


def test_only_the_first_start_reads_whole_files(sets, monkeypatch, tmp_path):
    for form in ("parquet", "webdataset"):
        name = open_stored(sets / form, SIZE).name
        assert (sets / form / places.SIDECAR).exists()

        def refuse(place, name):
            raise AssertionError(f"{name} is read again")

        with monkeypatch.context() as patch:
            patch.setattr(places, "_sha256", refuse)
            assert open_stored(sets / form, SIZE).name == name
            part = next((sets / form).glob("[ps]*.*"))
            os.utime(part, ns=(1, 1))
            with pytest.raises(AssertionError, match="is read again"):
                open_stored(sets / form, SIZE)
        assert open_stored(sets / form, SIZE).name == name
        (sets / form / places.SIDECAR).write_text("{")
        assert open_stored(sets / form, SIZE).name == name


def test_a_folder_that_cannot_be_written_is_read(sets, monkeypatch):
    for form in ("parquet", "webdataset"):
        for name in (places.SIDECAR, INDEX):
            (sets / form / name).unlink(missing_ok=True)
    monkeypatch.setattr("process_gen.common.files.whole", _read_only)
    for form in ("parquet", "webdataset"):
        assert open_stored(sets / form, SIZE)[0].turns
        assert not (sets / form / places.SIDECAR).exists()


def test_an_index_that_is_cut_off_is_made_anew(sets):
    path = sets / "webdataset" / INDEX
    whole = len(open_stored(path.parent, SIZE))
    path.write_bytes(path.read_bytes()[:200])
    assert len(open_stored(path.parent, SIZE)) == whole


def _read_only(path):
    raise OSError(30, "Read-only file system")


def test_another_image_than_the_checksum_says_is_named(odd, tmp_path, toy_tokenizer):
    writers.write_folder(tmp_path / "set", writers.objects(open_stored(odd, SIZE)))
    source = open_stored(tmp_path / "set", SIZE)
    assert source[0].turns
    image = next((tmp_path / "set" / "images").glob("000000_1.*"))
    PIL.Image.new("RGB", (20, 30)).save(image)
    with pytest.raises(
        BadTrajectory, match=r"turns\[1\].image is another file than its sha256 says: 'images"
    ):
        source[0]
    with pytest.raises(BadTrajectory, match=r"line 1: turns\[1\].image is another file"):
        list(writers.objects(source))
    bad = []
    assert len(list(writers.objects(source, bad.append))) == 3 and len(bad) == 1


@pytest.mark.parametrize(
    ("form", "content", "message"),
    [
        ("set.parquet", b"PAR1 no", "set.parquet cannot be read as Parquet"),
        ("set.tar", b"no tar file" * 100, "set.tar cannot be read as an uncompressed tar file"),
        ("set.json", b"[1, 2]", "set.json, record 1: line is not a JSON object"),
        ("set.json", b"[1, ", "set.json is not JSON"),
    ],
)
def test_a_file_that_is_no_set_is_named(tmp_path, form, content, message):
    (tmp_path / form).write_bytes(content)
    with pytest.raises(BadTrajectory, match=message):
        open_stored(tmp_path / form, SIZE)


def test_a_row_group_that_is_broken_is_named_by_its_row(sets, tmp_path):
    content = bytearray((sets / "parquet" / "part-00000.parquet").read_bytes())
    content[4:2000] = b"\xff" * 1996
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(BadTrajectory, match="a.parquet cannot be read as Parquet"):
        open_stored(tmp_path / "a.parquet", SIZE)


def test_a_shard_that_is_cut_off_is_named(sets, tmp_path, caplog):
    whole = (sets / "webdataset" / "shard-00000.tar").read_bytes()
    with tarfile.open(sets / "webdataset" / "shard-00000.tar") as tar:
        members = tar.getmembers()
    image = next(member for member in members if member.name.endswith(".png"))
    (tmp_path / "cut.tar").write_bytes(whole[: image.offset_data + 100])
    with pytest.raises(BadTrajectory, match="cut.tar cannot be read as an uncompressed tar file: cut off in"):
        open_stored(tmp_path / "cut.tar", SIZE)
    fourth = next(member for member in members if member.name.startswith("000000003"))
    for end, lines in ((len(whole), 0), (fourth.offset, 1)):  # the second between two samples
        (tmp_path / f"{end}.tar").write_bytes(whole[:end])
        found = open_stored(tmp_path / f"{end}.tar", SIZE)
        assert caplog.text.count(f"{end}.tar has no end mark: it may be cut off") == lines
    assert len(found) == 3


def test_bad_rows_are_named_or_skipped_in_every_form(sets, tmp_path):
    for form, where in (
        ("parquet", "part-00000.parquet, row 2"),
        ("webdataset", "shard-00000.tar, key 000000002"),
    ):
        found = list(writers.objects(open_stored(sets / form, SIZE)))[:12]
        found[2]["prompt"] = "a <refine> b"
        WRITERS[form](tmp_path / form, found)
        with pytest.raises(BadTrajectory, match=f"{where}: prompt must not contain the token <refine>"):
            open_stored(tmp_path / form, SIZE)
        source = open_stored(tmp_path / form, SIZE, bad="skip")
        assert len(source) == 11 and len(source.skipped) == 1
        assert source[2].uid == found[3]["uid"]


def test_several_splits_in_one_folder_are_not_mixed(tmp_path):
    table = pa.table({"prompt": ["a"]})
    for folder, names in (
        ("named", ("train-00000-of-00001", "test-00000-of-00001")),
        ("in", ("train/0", "test/0")),
    ):
        for name in names:
            path = tmp_path / folder / "data" / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path)
        with pytest.raises(ValueError, match=r"several splits \(test, train\): name the folder") as error:
            open_rows(tmp_path / folder, "parquet")
        advised = str(error.value).partition("--config.data.path='")[2].rstrip("'")
        assert len(open_rows(advised, "parquet")) == 1
    for path in (
        "named/**/train*.parquet",
        "named/data/train*.parquet",
        "in/data/train",
        "in/data/train/*.parquet",
    ):
        assert len(open_rows(f"{tmp_path}/{path}", "parquet")) == 1
    with pytest.raises(FileNotFoundError):
        open_rows(f"{tmp_path}/in/data/*.parquet", "parquet")


def test_writers_leave_what_is_there(sets, trajectories):
    for form in (*WRITERS, "records"):
        with pytest.raises(FileExistsError, match="is not empty: choose another folder"):
            written(form, sets / form, trajectories)


def test_what_fails_half_way_leaves_no_set(trajectories, tmp_path):
    def failing():
        yield trajectories[0]
        raise RuntimeError("the disk is full")

    for form in (*WRITERS, "records"):
        with pytest.raises(RuntimeError):
            written(form, tmp_path / form, failing())
        assert not [path for path in (tmp_path / form).glob("*") if path.is_file()]
        with pytest.raises((FileNotFoundError, ValueError)):
            detect(tmp_path / form)
    assert not list(tmp_path.glob("*records*"))


@pytest.mark.parametrize("root", ["memory://bucket", "gs://bucket/sets"])
def test_a_set_behind_a_url_is_written_and_read(trajectories, root, gcs):
    for form in WRITERS:
        url = f"{root}/{form}"
        assert written(form, url, trajectories[:5]) == 5
        assert detect(url) == form
        for _ in range(2):  # the second time with what was kept
            source = open_stored(url, SIZE)
            assert_same_trajectory(source[3], trajectories[3])
        assert source.shapes() == [SIZE] * 5 == source.shapes()
    assert len(open_stored(f"{root}/**/parquet/*.parquet", SIZE)) == 5
    with pytest.raises(ValueError, match=r"nope://x cannot be opened .*process_gen\[remote\]"):
        open_stored("nope://x", SIZE)
    fsspec.core.url_to_fs(root)[0].rm(root, recursive=True)


def test_a_set_at_the_root_of_a_zip_file_is_read(tmp_path, trajectories):
    written("folder", tmp_path / "set", trajectories[:2])
    url = f"zip://::{shutil.make_archive(str(tmp_path / 'packed'), 'zip', tmp_path / 'set')}"
    assert_same_trajectory(open_stored(url, SIZE)[1], trajectories[1])


def test_shapes_are_those_of_the_last_images(odd, tmp_path):
    for form in ("parquet", "webdataset"):
        WRITERS[form](tmp_path / form, writers.objects(open_stored(odd, SIZE)))
        source = open_stored(tmp_path / form, SIZE)
        assert source.shapes() == [(20, 30)] * 4 and source.turns() == 7
        part = open_stored(tmp_path / form, SIZE).of_shape((8, 12), [1, 3])
        assert part.turns() == 3 and part[1].image.shape == (8, 12, 3) and part[1].uid == "words"


def test_a_share_of_a_tfds_set_without_a_validation_split_is_held_out(sets):
    data = {"source": "records", "path": str(sets / "records")}
    parts = [hold_out(open_source(data, SIZE, split), 0.25, split=split) for split in ("train", "validation")]
    uids = [{part[i].uid for i in range(len(part))} for part in parts]
    assert len(uids[0] | uids[1]) == COUNT and len(uids[1]) == round(COUNT / 4) and not uids[0] & uids[1]


def test_what_the_sampler_writes_trains_without_conversion(trajectories, tmp_path):
    one = trajectories[0]
    own = {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
    listing = Listing(tmp_path / "samples", {"steps": 1})
    for seed in range(3):
        listing.add(SampledTrajectory(**own, seed=seed), number=seed)
    batches = [
        list(make_loader(source, scenes_tokenizer(), LAYOUT, 1, shuffle=False, epochs=1))
        for source in (open_stored(tmp_path / "samples", SIZE), [one] * 3)
    ]
    for batch, direct in zip(*batches, strict=True):
        for name in direct:
            np.testing.assert_array_equal(batch[name], direct[name], err_msg=name)
