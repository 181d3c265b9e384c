import collections
import dataclasses
import itertools
import json
import threading
import time

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
from grain._src.python.testing.experimental import assert_equal_output_after_checkpoint

from process_gen.data import packing
from process_gen.data.encode import encode_trajectory, split_trajectory
from process_gen.data.errors import BadTrajectory, SlotOverflow, TooManyBadTrajectories, budget_of_part
from process_gen.data.loader import make_loader
from process_gen.data.packing import Policy, packing_stats
from process_gen.trajectory.batch import PAD_ID, Batch
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Trajectory, draft, refinement
from tests.data.conftest import random_trajectory

LAYOUT = Layout(image_size=(8, 8), latent_grid=(2, 2), turns=8, trajectories=3, corrections=2)


@pytest.fixture(scope="module")
def source():
    return [random_trajectory(seed, twice=0.3) for seed in range(60)]


def trajectories_in(batch):
    """Yields (arrays of one trajectory, its prompt) of every trajectory in a batch."""
    for row in range(len(batch["present"])):
        fields = {name: value[row] for name, value in batch.items()}
        starts = np.flatnonzero(fields["is_first"])
        ends = np.flatnonzero(fields["is_last"]) + 1
        assert len(starts) == len(ends)
        for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
            assert (fields["prompt_index"][start:end] == index).all() and fields["present"][start:end].all()
            turns = {k: v[start:end] for k, v in fields.items() if k not in ("prompt_tokens", "prompt_index")}
            yield turns, fields["prompt_tokens"][index]


def names_in(batches, source, tokenizer):
    """Returns the indices of the trajectories in `batches`, checking that each came through whole."""
    by_image = {trajectory.turns[0].image.tobytes(): index for index, trajectory in enumerate(source)}
    found = []
    for batch in batches:
        for turns, prompt in trajectories_in(batch):
            index = by_image[turns["image"][0].tobytes()]
            expected = encode_trajectory(tokenizer, LAYOUT, source[index])
            np.testing.assert_array_equal(prompt, expected["prompt_tokens"])
            for name, value in turns.items():
                np.testing.assert_array_equal(value, expected[name], err_msg=name)
            found.append(index)
    return found


def test_one_epoch_holds_every_trajectory_once_and_whole(source, toy_tokenizer):
    batches = list(make_loader(source, toy_tokenizer, LAYOUT, 4, epochs=1))
    spec = Batch.spec(LAYOUT, 4)
    for batch in batches:
        for name, value in batch.items():
            assert (value.shape, value.dtype) == (getattr(spec, name).shape, getattr(spec, name).dtype), name
    found = names_in(batches, source, toy_tokenizer)
    assert sorted(found) == list(range(60)) and found != sorted(found)


def test_epochs_differ_and_the_seed_repeats_them(source, toy_tokenizer):
    def order(seed, count=8):
        loader = make_loader(source, toy_tokenizer, LAYOUT, 1, seed=seed, open_rows=1, prefetch=0)
        return names_in(itertools.islice(loader, count * 16), source, toy_tokenizer)

    first = order(0)
    assert first == order(0) != order(1)
    assert sorted(first[:60]) == sorted(first[60:120]) == list(range(60)) and first[:60] != first[60:120]


@pytest.mark.parametrize(
    ("batch_size", "hosts"), [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4), (8, 1), (8, 2), (8, 4)]
)
def test_an_epoch_holds_every_trajectory_once_whatever_the_hosts(source, toy_tokenizer, batch_size, hosts):
    data = source[:37]  # no multiple of anything
    share = batch_size // hosts
    found = []
    for host in range(hosts):
        rows = range(host * share, (host + 1) * share)
        loader = make_loader(data, toy_tokenizer, LAYOUT, batch_size, rows=rows, epochs=1, prefetch=0)
        found += names_in(loader, data, toy_tokenizer)
    assert sorted(found) == list(range(37))


def test_more_rows_than_trajectories_leave_rows_empty(source, toy_tokenizer):
    (batch,) = make_loader(source[:5], toy_tokenizer, LAYOUT, 8, epochs=1)
    assert batch["present"].any(1).tolist() == [True] * 5 + [False] * 3
    assert sorted(names_in([batch], source, toy_tokenizer)) == list(range(5))


def test_the_order_is_that_of_one_host_and_any_hosts_go_on_with_it(source, toy_tokenizer):
    """Four rows on one host, then on two hosts with rows (0, 3) and (1, 2), then on one again."""

    def start(rows=None, state=None):
        iterator = iter(make_loader(source, toy_tokenizer, LAYOUT, 4, rows=rows, open_rows=3))
        if state is not None:
            iterator.set_state(json.loads(json.dumps(state)))
        return iterator

    whole = start()
    expected = [next(whole) for _ in range(12)]
    first = start()
    np.testing.assert_equal([next(first) for _ in range(4)], expected[:4])
    rows = first.get_state()["rows"].values()
    assert any(place >= 0 for row in rows for held in row["open"] for place in held), "rows are partly filled"
    outer, inner = start((0, 3), first.get_state()), start((2, 1), first.get_state())
    for batch in expected[4:8]:
        a, b = next(outer), next(inner)
        for name, value in batch.items():
            np.testing.assert_array_equal(a[name], value[[0, 3]])
            np.testing.assert_array_equal(b[name], value[[1, 2]])
    states = outer.get_state(), inner.get_state()
    last = start(state={**states[0], "rows": states[0]["rows"] | states[1]["rows"]})
    np.testing.assert_equal([next(last) for _ in range(4)], expected[8:])


@pytest.mark.parametrize("prefetch", [0, 2])
def test_the_iterator_continues_exactly_from_every_state(source, toy_tokenizer, prefetch):
    loader = make_loader(source[:11], toy_tokenizer, LAYOUT, 2, epochs=2, open_rows=3, prefetch=prefetch)
    assert_equal_output_after_checkpoint(loader)


def test_orbax_saves_and_restores_the_iterator(source, toy_tokenizer, tmp_path):
    loader = make_loader(source, toy_tokenizer, LAYOUT, 2)
    iterator = iter(loader)
    for _ in range(5):
        next(iterator)
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(5, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
        manager.wait_until_finished()
        expected = next(iterator)
        other = iter(loader)
        manager.restore(5, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(other)))
    np.testing.assert_equal(next(other), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "order was seed 0, is seed 1"),
        ({"batch_size": 3}, "batch was 2 rows, is 3 rows"),
        ({"open_rows": 3}, "rows was 8 open ones of 8 turns and 3 trajectories, is 3 open"),
    ],
)
def test_a_state_of_other_data_is_refused(source, toy_tokenizer, changes, message):
    state = iter(make_loader(source, toy_tokenizer, LAYOUT, 2)).get_state()
    other = iter(make_loader(source, toy_tokenizer, LAYOUT, **{"batch_size": 2, **changes}))
    with pytest.raises(ValueError, match=f"belongs to other data: {message}"):
        other.set_state(state)


def test_a_state_from_before_trajectories_were_split_says_how_to_go_on(source, toy_tokenizer):
    first = iter(make_loader(source, toy_tokenizer, LAYOUT, 2, prefetch=0))
    next(first)
    state = first.get_state()
    del state["identity"]["longer than a row"], state["rows"]["0"]["part"], state["rows"]["1"]["part"]
    with pytest.raises(ValueError, match="longer than a row was None, is split; .*data.on_long=drop"):
        iter(make_loader(source, toy_tokenizer, LAYOUT, 2)).set_state(state)
    again = iter(make_loader(source, toy_tokenizer, LAYOUT, 2, prefetch=0, policy=Policy(long="drop")))
    again.set_state(state)
    np.testing.assert_equal(next(again), next(first))


def test_a_state_of_one_stream_for_all_rows_is_refused(source, toy_tokenizer):
    old = {"position": 9, "skipped": 0, "overlong": 0, "rows": [[8, -1, -1]], "identity": {}}
    with pytest.raises(ValueError, match="of an earlier version.*start another workdir from its weights"):
        iter(make_loader(source, toy_tokenizer, LAYOUT, 2)).set_state(old)


def test_open_rows_reduce_the_waste(source, toy_tokenizer):
    layout = dataclasses.replace(LAYOUT, turns=9)

    def waste(open_rows):
        report = make_loader(source, toy_tokenizer, layout, 4, open_rows=open_rows).report(20)
        return report.unused["empty turn slots"]

    assert waste(16) < 0.05 < 0.1 < waste(1)


def test_the_report_counts_what_holds_nothing(toy_tokenizer):
    """One row by hand: a draft that is corrected, a slip, an empty slot; one prompt of two."""
    image = np.zeros((8, 8, 3), np.uint8)
    turns = (
        draft(image, None, "a red circle", image_ok=False),
        refinement(image, "star"),
        draft(image, image_ok=False),
    )
    layout = Layout(
        image_size=(8, 8), latent_grid=(2, 2), turns=4, trajectories=2, prompt=6, before=9, after=7, copies=3
    )
    report = make_loader([Trajectory("a blue square", turns)], toy_tokenizer, layout, 1, epochs=1).report(3)
    assert (report.rows, report.turns_per_trajectory) == (1, 3.0)
    noised, turn = 3 * 6, 9 + 4 * 6 + 7
    assert report.tokens == 2 * 6 + 4 * turn == layout.row_tokens
    wanted = {
        "empty turn slots": turn,
        "empty prompt slots": 6,
        "absent text before the image": 2 * 9,
        "absent text after the image": 2 * 7,
        "padding in prompts": 6 - 5,
        "padding in text before the image": 9 - 5,
        "padding in text after the image": 7 - 5,
        "flow targets of nothing": noised,
    }
    found = {cause: round(share * report.tokens, 6) for cause, share in report.unused.items() if share}
    assert found == wanted
    assert report.useful == pytest.approx(1 - sum(wanted.values()) / report.tokens)
    assert f"packing: {report.useful:.1%} of {report.tokens} tokens of a row useful; empty turn slots" in str(
        report
    )
    assert "3.00 turns per trajectory (1 rows)" in str(report)
    assert report.table().splitlines()[-1].split() == ["useful", f"{report.useful:.1%}"]
    with pytest.raises(ValueError, match="no batches"):
        packing_stats([], layout)


def test_the_report_counts_input_images(source, toy_tokenizer):
    layout = dataclasses.replace(LAYOUT, prompt_image=True, instruction=12)
    shown = [dataclasses.replace(one, prompt_image=one.image, instruction="a star") for one in source]
    plain, rich = (make_loader(x, toy_tokenizer, layout, 4, epochs=1).report(99) for x in (source, shown))
    assert plain.unused["absent prompt images"] > 0 == rich.unused["absent prompt images"]
    assert plain.unused["absent prompt instructions"] > 0 == rich.unused["absent prompt instructions"]
    image, text = 6, len(toy_tokenizer.encode("a star")) + 2
    gained = len(source) * (image + text) / (plain.rows * plain.tokens)
    assert rich.useful == pytest.approx(plain.useful + gained)


def test_trajectories_without_corrections_pay_for_none(toy_tokenizer):
    """Texts that fill their slots, no correction: all of a row is useful but what is left of it."""
    image = np.zeros((8, 8, 3), np.uint8)
    single = [Trajectory("circle circle", (draft(image, None, "circle circle"),) * 2)] * 6
    layout = Layout(
        image_size=(8, 8), latent_grid=(2, 2), prompt=4, before=0, after=4, turns=4, trajectories=2
    )
    report = make_loader(single, toy_tokenizer, layout, 1, epochs=1).report(3)
    assert report.useful == 1.0 and "none unused" in str(report)


class Faulty:
    """A source with trajectories that cannot be read; it may be slow, and says which threads read it."""

    def __init__(self, source, bad=(3,), wait=0.0):
        self.source, self.bad, self.wait, self.threads = source, bad, wait, set()

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        self.threads.add(threading.current_thread().name)
        time.sleep(self.wait * (index % 3))
        if index in self.bad:
            raise BadTrajectory(f"trajectory 'toy-{index}': broken")
        return self.source[index]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_bad_trajectory_fails_by_name_or_is_skipped(source, toy_tokenizer, prefetch):
    faulty = Faulty(source)
    with pytest.raises(BadTrajectory, match="'toy-3': broken"):
        list(make_loader(faulty, toy_tokenizer, LAYOUT, 4, epochs=1, prefetch=prefetch))
    policy = Policy(bad="skip", budget=0.02)
    loader = make_loader(faulty, toy_tokenizer, LAYOUT, 4, epochs=1, prefetch=prefetch, policy=policy)
    assert sorted(names_in(loader, source, toy_tokenizer)) == [i for i in range(60) if i != 3]


def test_what_was_skipped_stays_skipped_after_a_restart(source, toy_tokenizer):
    policy = Policy(bad="skip", budget=0.1)
    loader = make_loader(Faulty(source[:12]), toy_tokenizer, LAYOUT, 2, epochs=1, open_rows=2, policy=policy)
    assert_equal_output_after_checkpoint(loader)


def test_skipping_has_a_budget(source, toy_tokenizer):
    faulty = Faulty(source, bad=(3, 4, 5))
    policy = Policy(bad="skip", budget=0.04)
    with pytest.raises(TooManyBadTrajectories, match="3 of 60 trajectories are bad, 4.00% may be"):
        list(make_loader(faulty, toy_tokenizer, LAYOUT, 4, epochs=1, policy=policy))


def test_overlong_trajectories_are_left_out_by_name(source, toy_tokenizer, caplog):
    nine = dataclasses.replace(source[11], turns=source[11].turns[:1] * 9, uid="toy-99")
    long = [*source[:10], nine]
    loader = make_loader(long, toy_tokenizer, LAYOUT, 4, epochs=1)
    assert sorted(names_in(loader, long, toy_tokenizer)) == list(range(10))
    assert "left out overlong trajectory (1 so far): trajectory 'toy-99': 9 turns, a row has 8" in caplog.text


def test_long_trajectories_are_split_at_a_step_and_every_step_is_taught_once(toy_tokenizer):
    """A part begins with the step before it, which is given; it is resumed in the middle of one."""
    layout = dataclasses.replace(LAYOUT, context="step")
    long = [random_trajectory(seed, steps=2 + 5 * (seed % 4), twice=0.3) for seed in range(12)]
    assert sum(len(one.turns) > layout.turns for one in long) > 6

    def batches():
        return iter(make_loader(long, toy_tokenizer, layout, 1, epochs=1, prefetch=0, shuffle=False))

    found = collections.Counter()
    for batch in (whole := list(batches())):
        taught = batch["present"] & (batch["supervised"] > 0)
        found += collections.Counter(image.tobytes() for image in batch["image"][taught])
        given = batch["present"] & (batch["supervised"] == 0)
        assert (batch["prompt_index"][given] >= 0).all() and not (given & ~batch["present"]).any()
    assert found == collections.Counter(turn.image.tobytes() for one in long for turn in one.turns)
    for count in range(1, len(whole)):
        first, again = batches(), batches()
        for _ in range(count):
            next(first)
        again.set_state(json.loads(json.dumps(first.get_state())))
        np.testing.assert_array_equal(next(again)["image"], whole[count]["image"])


def test_parts_of_a_trajectory_hold_its_latents_and_whole_steps():
    one = random_trajectory(3, steps=9, twice=0.3)
    latents = {"image": np.arange(len(one.turns)), "prompt": np.zeros(1)}
    one = dataclasses.replace(one, latents=latents)
    parts = split_trajectory(one, dataclasses.replace(LAYOUT, context="last"))
    assert len(parts) > 1 and all(len(part.turns) <= LAYOUT.turns for part in parts)
    place = 0
    for part in parts:
        place -= part.context_turns
        assert part.context_turns == (len(part.steps[0].turns) if place else 0)
        np.testing.assert_array_equal(part.latents["image"], place + np.arange(len(part.turns)))
        assert all(a is b for a, b in zip(part.turns, one.turns[place:], strict=False))
        place += len(part.turns)
        assert part.ends == (place == len(one.turns)), "nothing is to learn to stop in the middle"
    assert place == len(one.turns)
    assert split_trajectory(one, LAYOUT) == [one], (
        "with the whole history in sight nothing can be left behind"
    )
    assert split_trajectory(one, dataclasses.replace(LAYOUT, context="last", turns=3)) == [one]


def test_a_source_of_nothing_but_overlong_trajectories_ends(source, toy_tokenizer, monkeypatch):
    """Left out one by one they would be waited for for ever: the error says what to set."""
    monkeypatch.setattr(packing, "_LONG_WHILE", 20)
    first = source[0].turns[:1]
    long = [dataclasses.replace(source[0], turns=first * (9 + n % 3), uid=f"toy-{n}") for n in range(4)]
    with pytest.raises(TooManyBadTrajectories, match=r"more than the 8 turns.*longest one 11.*turns=11"):
        next(iter(make_loader(long, toy_tokenizer, LAYOUT, 2)))
    few = make_loader([*long, source[1]], toy_tokenizer, LAYOUT, 1)
    assert set(names_in(itertools.islice(few, 9), [*long, source[1]], toy_tokenizer)) == {4}


def test_a_bucket_may_hold_all_that_is_bad_of_the_whole():
    assert budget_of_part(10, 20) == 0.9 and budget_of_part(100, 1000) == pytest.approx(0.1)
    assert budget_of_part(1000, 10_000) == pytest.approx(0.01)


def test_a_text_too_long_for_its_slot_is_never_cut_in_silence(source, toy_tokenizer):
    narrow = dataclasses.replace(LAYOUT, before=8)
    with pytest.raises(SlotOverflow, match="the text before an image .* has"):
        next(iter(make_loader(source, toy_tokenizer, narrow, 2)))


def test_a_source_without_trajectories_is_refused(toy_tokenizer):
    with pytest.raises(ValueError, match="no trajectories"):
        make_loader([], toy_tokenizer, LAYOUT, 2)


def test_input_images_of_prompts_come_through_whole(source, toy_tokenizer):
    layout = dataclasses.replace(LAYOUT, prompt_image=True, instruction=12)
    shown = [
        dataclasses.replace(one, prompt_image=255 - one.turns[0].image, instruction="a star")
        if i % 2
        else one
        for i, one in enumerate(source)
    ]
    spec, seen = Batch.spec(layout, 4), 0
    for batch in make_loader(shown, toy_tokenizer, layout, 4, epochs=1):
        for name, value in batch.items():
            assert (value.shape, value.dtype) == (getattr(spec, name).shape, getattr(spec, name).dtype), name
        there = batch["has_prompt_image"]
        assert ((batch["instruction_tokens"] != PAD_ID).any(-1) == there).all()
        for row, slot in zip(*np.nonzero(batch["is_first"]), strict=True):
            index = batch["prompt_index"][row, slot]
            if there[row, index]:
                image = batch["image"][row, slot]
                np.testing.assert_array_equal(batch["prompt_image"][row, index], 255 - image)
                seen += 1
    assert seen == 30


def test_threads_change_nothing_but_who_reads(source, toy_tokenizer):
    policy, (plain, slow) = Policy("skip", 0.5), (Faulty(source, (7,), 0.002) for _ in range(2))
    wanted = list(make_loader(plain, toy_tokenizer, LAYOUT, 4, epochs=2, prefetch=0, policy=policy))
    loader = make_loader(slow, toy_tokenizer, LAYOUT, 4, epochs=2, threads=3, policy=policy)
    iterator = iter(loader)
    for count, batch in enumerate(wanted):
        found = next(iterator)
        for name, value in batch.items():
            np.testing.assert_array_equal(found[name], value)
        if count == 2:
            state = iterator.get_state()
    iterator.close()
    assert plain.threads == {threading.main_thread().name} and len(slow.threads) >= 3
    again = iter(make_loader(slow, toy_tokenizer, LAYOUT, 4, epochs=2, threads=2, policy=policy))
    again.set_state(state)
    np.testing.assert_array_equal(next(again)["image"], wanted[3]["image"])
    again.close()
    with pytest.raises(BadTrajectory, match="'toy-7': broken"):
        list(make_loader(slow, toy_tokenizer, LAYOUT, 4, epochs=1, threads=2))
