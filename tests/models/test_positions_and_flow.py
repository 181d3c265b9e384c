"""Fixed positions, rotary ids and the flow's one convention."""

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.models import flow
from process_gen.models.content import ChunkInputs, positions
from process_gen.models.layers import rope_angles, rotate
from process_gen.models.positions import grid_places, sincos_table, timestep_features
from process_gen.models.unified import _turn_starts
from process_gen.sampling.flow import FlowSpec
from process_gen.trajectory.batch import PAD_ID
from process_gen.trajectory.visibility import Chunk
from tests.models.tiny import CONFIG, VIT, layout


def test_the_table_encodes_the_column_first_then_the_row():
    table = sincos_table(16, grid_places((2, 3)))
    assert table.shape == (6, 16)
    np.testing.assert_allclose(table[0], [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4)  # row 0, column 0
    np.testing.assert_allclose(table[1][:8], [np.sin(10000 ** (-i / 4)) for i in range(4)]
                               + [np.cos(10000 ** (-i / 4)) for i in range(4)], rtol=1e-6)  # fmt: skip
    np.testing.assert_allclose(table[1][8:], table[0][8:])
    np.testing.assert_allclose(table[3][:8], table[0][:8])  # row 1, column 0


def test_timestep_features_have_cosines_first():
    features = timestep_features(jnp.asarray([0.0, 1.0]))
    assert features.shape == (2, 256)
    np.testing.assert_allclose(features[0], [1.0] * 128 + [0.0] * 128)
    np.testing.assert_allclose(features[1, 128], np.sin(1.0), rtol=1e-6)


def test_rotation_depends_on_differences_only():
    key = jax.random.split(jax.random.key(0))
    q, k = (jax.random.normal(x, (1, 1, 1, CONFIG.head_dim)) for x in key)

    def score(a, b, place_a=0, place_b=0):
        def rope(at, place):
            places = jnp.full(1, float(place))
            angles = rope_angles(CONFIG, jnp.full((1, 1), at), places, places)
            return jnp.cos(angles), jnp.sin(angles)

        return float(jnp.sum(rotate(q, rope(a, place_a)) * rotate(k, rope(b, place_b))))

    np.testing.assert_allclose(score(5, 3, 1, 0), score(12, 10, 3, 2), rtol=1e-4)
    assert abs(score(5, 3) - score(5, 4)) > 1e-4
    assert abs(score(5, 3, 1, 0) - score(5, 3, 0, 0)) > 1e-4


def test_turns_start_where_their_prompt_and_the_turns_before_them_end():
    prompts, index = [[5, 9, 7]], [[0, 0, 0, 2, 2, 2, 1]]
    turns = [[4, 3, 2, 6, 1, 0, 2]]  # the sixth slot is absent
    first = [[True, False, False, True, False, False, True]]
    starts = _turn_starts(*(jnp.asarray(x) for x in (prompts, turns, index, first)))
    np.testing.assert_array_equal(starts, [[5, 5 + 4, 5 + 4 + 3, 7, 7 + 6, 7 + 6 + 1, 9]])


def test_an_image_that_is_left_out_takes_its_positions_and_one_that_never_was_takes_none():
    slots = layout(vit_grid=VIT)
    chunk, rows = Chunk(slots.turn_segments), 4
    before = jnp.full((rows, slots.before), PAD_ID).at[:3, :4].set(9)
    after = jnp.full((rows, slots.after), PAD_ID).at[:, :2].set(9)
    names = ("image", "image_vit")
    content = ChunkInputs(
        jnp.ones(rows, bool),
        texts={"before": before, "after": after},
        keep=dict.fromkeys(names, jnp.asarray([True, False, True, True])),
        exists={"image_vit": jnp.asarray([True, True, False, True])},
    )
    found, end = positions(chunk, content, jnp.full(rows, 10))
    np.testing.assert_array_equal(end, [10 + 4 + 2 + 2, 10 + 4 + 2 + 2, 10 + 4 + 1 + 2, 10 + 2 + 2])

    def at(name):
        return np.concatenate([np.asarray(found[:, piece]) for piece in chunk.packed(name)], axis=1)

    for name in ("noised_0", "noised_1", "image"):  # at the same place
        np.testing.assert_array_equal(at(name), np.broadcast_to([[14], [14], [14], [10]], at(name).shape))
    np.testing.assert_array_equal(at("image_vit")[:, 0], [15, 15, 15, 11])
    np.testing.assert_array_equal(at("before")[0], 10 + np.arange(slots.before))
    np.testing.assert_array_equal(at("after")[:, 0], [16, 16, 15, 12])


def test_the_velocity_points_from_data_to_noise():
    x, noise = (jax.random.normal(k, (3, 4, 5)) for k in jax.random.split(jax.random.key(1)))
    t = jnp.asarray([0.2, 0.5, 0.9])
    x_t = flow.add_noise(x, noise, t)
    np.testing.assert_allclose(flow.velocity_from_clean(x_t, x, t), noise - x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(flow.add_noise(x, noise, jnp.zeros(3)), x)
    np.testing.assert_allclose(flow.add_noise(x, noise, jnp.ones(3)), noise)


def test_shifted_times_run_from_noise_to_data():
    times = FlowSpec(flow_steps=4, time_shift=3.0).times
    np.testing.assert_allclose(times[[0, -1]], [1.0, 0.0])
    np.testing.assert_allclose(times[2], 3 * 0.5 / (1 + 2 * 0.5))
    assert (np.diff(times) < 0).all()
    drawn = flow.sample_time(jax.random.key(0), (20_000,), mean=0.4, std=1.0, shift=1.0)
    np.testing.assert_allclose(np.median(drawn), 1 / (1 + np.exp(-0.4)), atol=0.01)
