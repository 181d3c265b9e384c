"""Latents encoded ahead of time: a folder beside a source, in its order, checked against its images."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from process_gen.data.errors import BadTrajectory
from process_gen.data.latents import (
    INFO,
    LatentsInfo,
    LatentsMismatch,
    LatentsSource,
    LatentsWriter,
    images_of,
)
from process_gen.data.loader import make_loader
from process_gen.data.mixture import hold_out
from process_gen.data.preparation import NotPrepared
from process_gen.data.sources import with_latents
from process_gen.trajectory.layout import Layout
from tests.data.conftest import random_trajectory

LAYOUT = Layout(image_size=(8, 8), latent_grid=(2, 2), latent_values=3, turns=9, trajectories=3)
SHOWN = dataclasses.replace(LAYOUT, prompt_image=True, instruction=12)


def encoded(image):
    """Stand-in for an autoencoder: [N, V] that depend on the image, as many as the layout has."""
    return image.reshape(4, 16, 3)[:, 0].astype(np.float32) / 127.5 - 1.0


def write(folder, source, layout=LAYOUT, autoencoder="flux-1"):
    with LatentsWriter(folder, LatentsInfo.of(source, layout, autoencoder)) as writer:
        for trajectory in source[writer.written :]:
            writer.write(trajectory, np.stack([encoded(image) for image in images_of(trajectory)]))
    return folder


@pytest.fixture(scope="module")
def source():
    return [random_trajectory(seed) for seed in range(20)]


@pytest.fixture(scope="module")
def shown(source):
    """Every other trajectory has an input image."""
    image = np.random.default_rng(3).integers(0, 256, (20, 8, 8, 3), np.uint8)
    return [
        dataclasses.replace(one, prompt_image=image[i], instruction="a star") if i % 2 else one
        for i, one in enumerate(source)
    ]


def test_every_image_of_a_batch_has_its_latents(shown, toy_tokenizer, tmp_path):
    with_them = LatentsSource(shown, write(tmp_path, shown, SHOWN), SHOWN)
    seen = 0
    for batch in make_loader(with_them, toy_tokenizer, SHOWN, 2, epochs=1):
        for images, there in (("image", "present"), ("prompt_image", "has_prompt_image")):
            name, there = images.removesuffix("_image") + "_latents", batch[there]
            assert batch[name].dtype == np.float16 and batch[name].shape[2:] == (4, 3)
            for place in zip(*np.nonzero(there), strict=True):
                np.testing.assert_allclose(batch[name][place], encoded(batch[images][place]), atol=2**-11)
                seen += 1
            assert not batch[name][~there].any()
    assert seen == sum(len(images_of(one)) for one in shown)


def test_what_a_source_says_of_its_rows_is_handed_on(source, tmp_path):
    class Captions(list):
        def rows_of_trajectories(self):
            return np.arange(len(self)) // 2  # two captions of each image

    assert not hasattr(LatentsSource(source, write(tmp_path / "a", source), LAYOUT), "rows_of_trajectories")
    two = LatentsSource(Captions(source), write(tmp_path / "b", Captions(source)), LAYOUT)
    held = {int(index) // 2 for index in hold_out(two, 0.2, "validation").indices}
    assert held and not held & {int(index) // 2 for index in hold_out(two, 0.2, "train").indices}


def test_without_a_folder_nothing_changes(source, toy_tokenizer):
    assert (
        with_latents(source, {}, LAYOUT) is source and with_latents(source, {"latents": ""}, LAYOUT) is source
    )
    assert "image_latents" not in next(iter(make_loader(source, toy_tokenizer, LAYOUT, 2)))


def test_images_that_have_changed_since_are_noticed(source, tmp_path):
    write(tmp_path, source)
    first, *others = source[3].turns
    repainted = dataclasses.replace(first, image=first.image ^ 1)
    changed = list(source)
    changed[3] = dataclasses.replace(source[3], turns=(repainted, *others))
    found = LatentsSource(changed, tmp_path, LAYOUT)
    assert found[2].latents["image"].shape == (len(source[2].turns), 4, 3)
    with pytest.raises(BadTrajectory, match="'toy-3': its images are not those that the latents 3 in"):
        found[3]


def test_a_trajectory_that_was_broken_keeps_its_place(source, tmp_path):
    with LatentsWriter(tmp_path, LatentsInfo.of(source[:2], LAYOUT, "flux-1")) as writer:
        writer.write_bad(BadTrajectory("cut.png"))
        writer.write(source[1], np.zeros((len(images_of(source[1])), 4, 3)))
    found = LatentsSource(source[:2], tmp_path, LAYOUT)
    with pytest.raises(BadTrajectory, match="its images are not those"):
        found[0]
    assert found[1].uid == "toy-1"


def test_latents_of_something_else_are_refused(source, tmp_path):
    write(tmp_path, source)
    with pytest.raises(LatentsMismatch, match="trajectories was 20, is 19"):
        LatentsSource(source[1:], tmp_path, LAYOUT)
    with pytest.raises(LatentsMismatch, match="values was 3, is 5"):
        LatentsSource(source, tmp_path, dataclasses.replace(LAYOUT, latent_values=5))


def test_another_autoencoder_gives_the_loader_another_name(source, tmp_path):
    names = {
        LatentsSource(source, write(tmp_path / name, source, autoencoder=name), LAYOUT).name
        for name in ("flux-1", "flux-2")
    }
    assert len(names) == 2, "a run is not resumed with the latents of another autoencoder"


def test_what_is_missing_unfinished_or_damaged_is_named(source, tmp_path):
    with pytest.raises(NotPrepared, match="it does not exist.*process_gen.prepare"):
        LatentsSource(source, tmp_path / "nowhere", LAYOUT)
    info = LatentsInfo.of(source, LAYOUT, "flux-1")
    with pytest.raises(RuntimeError, match="interrupted"), LatentsWriter(tmp_path, info) as writer:
        writer.write(source[0], np.zeros((len(images_of(source[0])), 4, 3)))
        raise RuntimeError("interrupted")
    with pytest.raises(NotPrepared, match="says that they are not complete"):
        LatentsSource(source, tmp_path, LAYOUT)
    (tmp_path / INFO).unlink()
    with pytest.raises(NotPrepared, match=f"it has no {INFO}"):
        LatentsSource(source, tmp_path, LAYOUT)
    write(tmp_path, source)
    fields = json.loads((tmp_path / INFO).read_text())
    (tmp_path / INFO).write_text(json.dumps(fields | {"format": 1}))
    with pytest.raises(NotPrepared, match="it has format 1, this version reads 3.*process_gen.prepare"):
        LatentsSource(source, tmp_path, LAYOUT)
    few = write(tmp_path / "few", source[:5])
    (few / INFO).write_text(json.dumps(fields))
    with pytest.raises(NotPrepared, match="has 5 of 20 records"):
        LatentsSource(source, few, LAYOUT)


def test_a_stopped_writer_goes_on_after_its_last_whole_part(source, tmp_path, monkeypatch):
    monkeypatch.setattr("process_gen.data.latents.PART", 8)
    info = LatentsInfo.of(source, LAYOUT, "flux-1")

    def stopped(folder, info):
        with pytest.raises(KeyboardInterrupt), LatentsWriter(folder, info) as writer:
            for one in source[writer.written : writer.written + 11]:
                writer.write(one, np.stack([encoded(image) for image in images_of(one)]))
            raise KeyboardInterrupt

    stopped(tmp_path, info)
    first = tmp_path / "latents-00000.array_record"
    assert sorted(path.name for path in tmp_path.iterdir()) == [first.name, INFO]
    (tmp_path / "latents-00001.array_record.0f.unfinished").touch()  # what a kill leaves
    assert LatentsWriter(tmp_path, info).written == 8
    first.rename(tmp_path / "latents-00001.array_record")  # without the part before it, it is of no use
    assert LatentsWriter(tmp_path, info).written == 0
    stopped(tmp_path, info)
    (tmp_path / "latents-00001.array_record").write_bytes(first.read_bytes()[:-40])  # cut off
    written = first.stat().st_mtime_ns
    assert LatentsWriter(tmp_path, info).written == 8
    write(tmp_path, source)
    assert first.stat().st_mtime_ns == written and len(list(tmp_path.iterdir())) == 4
    whole = write(tmp_path.with_name(f"{tmp_path.name}-whole"), source)
    taken_up, in_one_go = (LatentsSource(source, folder, LAYOUT) for folder in (tmp_path, whole))
    for index in range(len(source)):
        latents = taken_up[index].latents["image"]
        np.testing.assert_array_equal(latents, in_one_go[index].latents["image"])


def test_unfinished_latents_of_something_else_are_kept(source, tmp_path):
    with pytest.raises(KeyboardInterrupt), LatentsWriter(tmp_path, LatentsInfo.of(source, LAYOUT, "flux-1")):
        raise KeyboardInterrupt
    with pytest.raises(LatentsMismatch, match="autoencoder was flux-1, is flux-2.*another folder"):
        LatentsWriter(tmp_path, LatentsInfo.of(source, LAYOUT, "flux-2"))
    write(tmp_path, source)
    (tmp_path / INFO).unlink()
    with pytest.raises(LatentsMismatch, match=f"holds latents, but it has no {INFO}; name another folder"):
        LatentsWriter(tmp_path, LatentsInfo.of(source, LAYOUT, "flux-1"))


def test_a_damaged_record_is_a_bad_trajectory(source, tmp_path):
    write(tmp_path, source)
    (part,) = tmp_path.glob("*.array_record")
    data = bytearray(part.read_bytes())
    data[2000] ^= 0xFF  # inside the first records
    part.write_bytes(data)
    found, bad = LatentsSource(source, tmp_path, LAYOUT), 0
    for index in range(len(source)):
        try:
            found[index]
        except BadTrajectory as error:
            assert "are damaged" in str(error)
            bad += 1
    assert bad >= 1


def test_latents_that_half_precision_cannot_hold_are_refused(source, tmp_path):
    latents = np.full((len(images_of(source[0])), 4, 3), 1e6)
    writer = LatentsWriter(tmp_path, LatentsInfo.of(source, LAYOUT, "flux-1"))
    with pytest.raises(BadTrajectory, match="'toy-0' are not finite in half precision"):
        writer.write(source[0], latents)
