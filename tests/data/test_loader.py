import dataclasses
import itertools
import json

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
from grain._src.python.testing.experimental import assert_equal_output_after_checkpoint

from process_gen.data.encode import BadTrajectory, SlotOverflow, TooManySteps, encode_trajectory
from process_gen.data.loader import make_loader
from process_gen.data.packing import Policy, TooManyBadTrajectories, packing_stats
from process_gen.trajectory.batch import PAD_ID, Batch
from process_gen.trajectory.layout import Layout

LAYOUT = Layout(image_size=(8, 8), latent_grid=(2, 2), steps=5, trajectories=3)


@pytest.fixture(scope="module")
def source(make_trajectory):
    return [make_trajectory(seed) for seed in range(60)]


def trajectories_in(batch):
    """Yields (arrays of one trajectory, its prompt) of every trajectory in a batch."""
    for row in range(len(batch["present"])):
        fields = {name: value[row] for name, value in batch.items()}
        starts = np.flatnonzero(fields["reset"])
        ends = np.flatnonzero(fields["last"]) + 1
        assert len(starts) == len(ends)
        for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
            assert (fields["prompt_index"][start:end] == index).all() and fields["present"][start:end].all()
            steps = {k: v[start:end] for k, v in fields.items() if k not in ("prompt_tokens", "prompt_index")}
            yield steps, fields["prompt_tokens"][index]


def names_in(batches, source, tokenizer):
    """Returns the indices of the trajectories in `batches`, checking that each came through whole."""
    by_image = {trajectory.steps[0].sketch.tobytes(): index for index, trajectory in enumerate(source)}
    found = []
    for batch in batches:
        for steps, prompt in trajectories_in(batch):
            index = by_image[steps["sketch"][0].tobytes()]
            expected = encode_trajectory(tokenizer, LAYOUT, source[index])
            np.testing.assert_array_equal(prompt, expected["prompt_tokens"])
            for name, value in steps.items():
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
    assert_equal_output_after_checkpoint(loader.dataset)


def test_a_state_with_open_rows_survives_json(source, toy_tokenizer):
    loader = make_loader(source, toy_tokenizer, LAYOUT, 1, open_rows=8)
    iterator = iter(loader)
    for _ in range(7):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    filled = [position >= 0 for row in state["rows"]["0"]["open"] for position in row]
    assert any(filled), "rows are partly filled here"
    expected = [next(iterator) for _ in range(9)]
    other = iter(loader)
    other.set_state(state)
    np.testing.assert_equal([next(other) for _ in range(9)], expected)


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
        ({"open_rows": 3}, "rows was 8 open ones of 5 steps and 3 trajectories, is 3 open"),
    ],
)
def test_a_state_of_other_data_is_refused(source, toy_tokenizer, changes, message):
    state = iter(make_loader(source, toy_tokenizer, LAYOUT, 2)).get_state()
    other = iter(make_loader(source, toy_tokenizer, LAYOUT, **{"batch_size": 2, **changes}))
    with pytest.raises(ValueError, match=f"belongs to other data: {message}"):
        other.set_state(state)


def test_a_state_of_one_stream_for_all_rows_is_refused(source, toy_tokenizer):
    old = {"position": 9, "skipped": 0, "overlong": 0, "rows": [[8, -1, -1]], "identity": {}}
    with pytest.raises(ValueError, match="of an earlier version.*start another workdir from its weights"):
        iter(make_loader(source, toy_tokenizer, LAYOUT, 2)).set_state(old)


def test_open_rows_reduce_the_waste(source, toy_tokenizer):
    layout = dataclasses.replace(LAYOUT, steps=6)

    def waste(open_rows):
        return make_loader(source, toy_tokenizer, layout, 4, open_rows=open_rows).report(20).empty_steps

    assert waste(16) < 0.05 < 0.1 < waste(1)


def test_the_report_counts_padding(toy_tokenizer, make_trajectory):
    single = [make_trajectory(seed, steps=1) for seed in range(6)]
    layout = Layout(image_size=(8, 8), latent_grid=(2, 2), steps=4, trajectories=2)
    report = make_loader(single, toy_tokenizer, layout, 1, epochs=1, open_rows=1).report(3)
    assert (report.rows, report.steps_per_trajectory, report.empty_steps) == (3, 1.0, 0.5)
    texts = [len(toy_tokenizer.encode(trajectory.prompt)) + 2 for trajectory in single]
    assert report.padding["prompt"] == pytest.approx(1 - np.mean(texts) / layout.prompt)
    absent = np.mean([trajectory.steps[0].inspect is None for trajectory in single])
    assert report.absent["inspect"] == pytest.approx(absent)
    assert "50.0% of the step slots empty, 1.00 steps per trajectory" in str(report)
    with pytest.raises(ValueError, match="no batches"):
        packing_stats([])


class Faulty:
    """A source with a trajectory that cannot be read and one whose prompt is too long."""

    def __init__(self, source, bad=(3,)):
        self.source, self.bad = source, bad

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
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
    assert_equal_output_after_checkpoint(loader.dataset)


def test_skipping_has_a_budget(source, toy_tokenizer):
    faulty = Faulty(source, bad=(3, 4, 5))
    policy = Policy(bad="skip", budget=0.04)
    with pytest.raises(TooManyBadTrajectories, match="3 bad trajectories among 60, the policy allows 4.00%"):
        list(make_loader(faulty, toy_tokenizer, LAYOUT, 4, epochs=1, policy=policy))


def test_overlong_trajectories_are_left_out_or_fail(source, toy_tokenizer, make_trajectory):
    long = [*source[:10], make_trajectory(99, steps=6)]
    loader = make_loader(long, toy_tokenizer, LAYOUT, 4, epochs=1)
    assert sorted(names_in(loader, long, toy_tokenizer)) == list(range(10))
    with pytest.raises(TooManySteps, match="'toy-99': 6 steps, a row has 5"):
        list(make_loader(long, toy_tokenizer, LAYOUT, 4, epochs=1, policy=Policy(overlong="fail")))


def test_a_text_too_long_for_its_slot_is_never_cut_in_silence(source, toy_tokenizer):
    narrow = Layout(image_size=(8, 8), latent_grid=(2, 2), steps=5, trajectories=3, plan=8)
    with pytest.raises(SlotOverflow, match="the plan text has"):
        next(iter(make_loader(source, toy_tokenizer, narrow, 2)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": []}, "no trajectories"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"rows": (1, 2)}, r"rows \(1, 2\) must be different ones of the 2"),
        ({"rows": ()}, "must be different ones"),
        ({"open_rows": 0}, "open_rows must be at least 1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(source, toy_tokenizer, arguments, message):
    defaults = {"source": source, "tokenizer": toy_tokenizer, "layout": LAYOUT, "batch_size": 2}
    with pytest.raises(ValueError, match=message):
        make_loader(**{**defaults, **arguments})
    with pytest.raises(ValueError, match="'fail' or 'skip'"):
        Policy(bad="ignore")


def test_input_images_of_prompts_come_through_whole(source, toy_tokenizer):
    layout = dataclasses.replace(LAYOUT, prompt_image=True, instruction=12)
    shown = [
        dataclasses.replace(one, prompt_image=255 - one.steps[0].sketch, instruction="a star")
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
        for row, slot in zip(*np.nonzero(batch["reset"]), strict=True):
            index = batch["prompt_index"][row, slot]
            if there[row, index]:
                sketch = batch["sketch"][row, slot]
                np.testing.assert_array_equal(batch["prompt_image"][row, index], 255 - sketch)
                seen += 1
    assert seen == 30
