import dataclasses
import errno
import json
import os
import pathlib
import types

import grain
import PIL.Image
import pytest
from grain._src.python.testing.experimental import assert_equal_output_after_checkpoint

from process_gen.data.buckets import merge_buckets, nearest, split_into_buckets
from process_gen.data.errors import allowance
from process_gen.data.formats.jsonl import LISTING
from process_gen.data.formats.opening import open_stored
from process_gen.data.loader import make_loader
from process_gen.data.packing import Policy
from process_gen.data.stored import SHAPES
from process_gen.models.config import model_config
from process_gen.models.vit import grid_of, reshaped
from process_gen.trajectory.layout import Layout

SIZES = ((16, 16), (8, 32), (32, 8))
LAYOUT = Layout(image_size=(16, 16), latent_grid=(2, 2), vit_grid=(3, 3), turns=2, trajectories=2)
LAYOUTS = {
    size: dataclasses.replace(
        LAYOUT, image_size=size, latent_grid=(size[0] // 8, size[1] // 8), vit_grid=grid_of(size, 9)
    )
    for size in SIZES
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve trajectories of one turn that end with a square, four wide, two tall; one image is broken."""
    folder = tmp_path_factory.mktemp("shapes")
    lines = []
    for number, (height, width) in enumerate([(20, 20)] * 12 + [(10, 37)] * 4 + [(90, 20)] * 2):
        shade = PIL.Image.new("RGB", (width, height), (10 * number, 10 * number, 10 * number))
        shade.save(folder / f"{number}.png")
        lines.append(json.dumps({"prompt": "a circle", "turns": [{"image": f"{number}.png"}]}))
    (folder / "3.png").write_bytes(b"no image")
    (folder / LISTING).write_text("\n".join(lines))
    return folder


def loader_of(folder, tokenizer, batch_size=2, rows=None, seed=0, sizes=SIZES, prefetch=2):
    source = open_stored(folder, sizes[0])
    buckets = split_into_buckets(source, sizes)
    made = {}
    for size, bucket in buckets.items():
        share = allowance(len(source)) * len(source) / len(bucket)
        policy = Policy("skip", min(share, 0.9))
        made[size] = make_loader(
            bucket,
            tokenizer,
            LAYOUTS[size],
            batch_size,
            rows=rows,
            seed=seed,
            prefetch=prefetch,
            policy=policy,
        )
    return merge_buckets(made, buckets)


def taken(iterator, count):
    """(size, shades of the drafts) of so many batches."""
    batches = [next(iterator) for _ in range(count)]
    return [(b["image"].shape[2:4], b["image"][:, :, 0, 0, 0].tolist()) for b in batches]


@pytest.mark.parametrize(
    ("shape", "index"), [((100, 100), 0), ((10, 15), 0), ((10, 40), 1), ((9, 90), 1), ((50, 10), 2)]
)
def test_the_nearest_shape_is_that_of_the_nearest_ratio(shape, index):
    assert nearest(shape, SIZES) == index


def test_trajectories_go_where_their_last_image_fits(folder):
    buckets = split_into_buckets(open_stored(folder, SIZES[0]), SIZES)
    counts = {size: (len(one), one.turns()) for size, one in buckets.items()}
    assert counts == {(16, 16): (12, 12), (8, 32): (4, 4), (32, 8): (2, 2)}
    for size, one in buckets.items():
        assert one[0].image.shape == (*size, 3)
    assert "at 8 x 32" in buckets[8, 32].name


def test_what_cannot_be_read_goes_to_the_largest_bucket(folder):
    buckets = split_into_buckets(open_stored(folder, SIZES[0]), ((32, 8), (8, 32), (16, 17)))
    assert [len(one) for one in buckets.values()] == [2, 4, 12]


def test_shapes_are_looked_up_once(folder, monkeypatch, caplog):
    source = open_stored(folder, SIZES[0])
    (folder / SHAPES).unlink(missing_ok=True)
    first = source.shapes()
    assert first[3] is None and first[0] == (20, 20) and (folder / SHAPES).is_file()

    def look(path):
        raise RuntimeError("looked up again")

    monkeypatch.setattr("process_gen.data.images.shape_of", look)
    assert source.shapes() == first
    assert "images could not be read when shapes.json was made" in caplog.text
    (folder / SHAPES).write_text("{")
    with pytest.raises(RuntimeError, match="looked up again"):
        source.shapes()


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.EACCES, errno.EMFILE])
def test_a_file_system_that_stumbles_decides_nothing(folder, monkeypatch, code):
    (folder / SHAPES).unlink(missing_ok=True)
    waited = []

    def broken(path):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("process_gen.data.images.shape_of", broken)
    monkeypatch.setattr("process_gen.data.stored.time.sleep", waited.append)
    with pytest.raises(OSError, match=os.strerror(code)):
        open_stored(folder, SIZES[0]).shapes()
    assert bool(waited) == (code in (errno.ESTALE, errno.EIO))  # others are not tried again
    assert not (folder / SHAPES).exists()


def test_what_cannot_be_dealt_says_so():
    with pytest.raises(ValueError, match="config.data.buckets is for sources that know the shapes"):
        split_into_buckets([1, 2], SIZES)
    with pytest.raises(ValueError, match="no trajectories"):
        split_into_buckets([], SIZES)


def test_sizes_that_suit_nothing_are_left_out(folder):
    assert list(split_into_buckets(open_stored(folder, SIZES[0]), (*SIZES, (2, 800)))) == list(SIZES)


def test_every_batch_has_one_shape_and_every_bucket_its_share(folder, toy_tokenizer):
    iterator = iter(loader_of(folder, toy_tokenizer))
    sizes = [size for size, _ in taken(iterator, 36)]
    iterator.close()
    assert [sizes.count(size) for size in SIZES] == [24, 8, 4]  # 12, 4 and 2 turns
    assert len(set(sizes[:6])) == 3


def test_longer_trajectories_take_more_turns(toy_tokenizer):
    made = {size: make_loader([0], toy_tokenizer, LAYOUT, 1) for size in SIZES[:2]}
    short, long = (types.SimpleNamespace(turns=lambda n=n: n) for n in (10, 40))
    buckets = dict(zip(SIZES[:2], (short, long), strict=True))
    iterator = iter(merge_buckets(made, buckets).dataset)

    def always(name):
        while True:
            yield name

    iterator._iterators = {name: always(name) for name in iterator._iterators}
    turns = [next(iterator) for _ in range(50)]
    assert turns.count("16x16") == 10 and turns.count("8x32") == 40


def test_the_state_of_every_moment_restores_exactly(folder, toy_tokenizer):
    class Dataset(grain.IterDataset):
        def __iter__(self):
            return Limited(iter(loader_of(folder, toy_tokenizer)))

    class Limited(grain.DatasetIterator):
        def __init__(self, inner):
            super().__init__()
            self._inner, self._left = inner, 12

        def __next__(self):
            if not self._left:
                raise StopIteration
            self._left -= 1
            return next(self._inner)

        def get_state(self):
            return {"left": self._left, "inner": self._inner.get_state()}

        def set_state(self, state):
            self._left = state["left"]
            self._inner.set_state(json.loads(json.dumps(state["inner"])))

    assert_equal_output_after_checkpoint(Dataset())


def test_one_bucket_is_a_loader_like_any_other(folder, toy_tokenizer):
    state = iter(loader_of(folder, toy_tokenizer, sizes=((16, 16),), prefetch=0)).get_state()
    assert list(state["rows"]) == ["0", "1"] and "given" not in state


def test_two_hosts_read_the_rows_that_one_does_and_go_on_for_it(folder, toy_tokenizer):
    whole, *halves = (iter(loader_of(folder, toy_tokenizer, rows=rows)) for rows in ([0, 1], [0], [1]))
    first = taken(whole, 5)
    parts = [taken(half, 5) for half in halves]
    for (size, rows), (size_0, row_0), (size_1, row_1) in zip(first, *parts, strict=True):
        assert size == size_0 == size_1 and rows == row_0 + row_1
    states = [half.get_state() for half in halves]
    fresh = iter(loader_of(folder, toy_tokenizer))
    fresh.set_state({**states[0], "rows": states[0]["rows"] | states[1]["rows"]})
    assert taken(fresh, 5) == taken(whole, 5)
    for iterator in (whole, fresh, *halves):
        iterator.close()


@pytest.mark.parametrize("other", [dict(seed=1), dict(batch_size=1), dict(sizes=SIZES[:2])])
def test_a_state_of_other_data_is_refused(folder, toy_tokenizer, other):
    one, two = iter(loader_of(folder, toy_tokenizer)), iter(loader_of(folder, toy_tokenizer, **other))
    with pytest.raises(ValueError, match="the saved loader state belongs to other data"):
        two.set_state(one.get_state())
    wide = split_into_buckets(open_stored(folder, SIZES[0]), SIZES)[SIZES[1]]
    plain = iter(make_loader(wide, toy_tokenizer, LAYOUTS[SIZES[1]], 2))
    with pytest.raises(ValueError, match="the saved loader state belongs to other data"):
        plain.set_state(one.get_state())
    for iterator in (one, two, plain):
        iterator.close()


def test_images_of_another_shape_have_as_many_vit_tokens_at_most():
    sizes = ((512, 512), (448, 576), (256, 1024), (16, 4096))
    grids = [grid_of(size, 22 * 22) for size in sizes]
    assert grids == [(22, 22), (19, 24), (11, 44), (1, 256)]
    model = model_config("bagel_7b")
    layout = reshaped(model, Layout(vit_grid=(22, 22)), (448, 576))
    assert (layout.image_size, layout.latent_grid, layout.vit_grid) == ((448, 576), (28, 36), (19, 24))
    assert reshaped(model, Layout(), (448, 576)).vit_grid == (0, 0)
    with pytest.raises(ValueError, match="exceeds model.max_latent_side"):
        reshaped(model, Layout(vit_grid=(22, 22)), (16, 4096))


def test_the_folder_of_a_part_is_the_one_it_came_from(folder):
    part = split_into_buckets(open_stored(folder, SIZES[0]), SIZES)[SIZES[2]]
    assert pathlib.Path(part.rows.place.root) == folder
