"""Fixed positions, rotary ids and the flow's one convention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.models import flow
from process_gen.models.layers import rope_angles, rotate
from process_gen.models.positions import grid_places, sincos_table, timestep_features
from tests.models.tiny import CONFIG


def test_the_table_encodes_the_column_first_then_the_row():
    table = sincos_table(16, 4, grid_places((2, 3)))
    assert table.shape == (6, 16)
    np.testing.assert_allclose(table[0], [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4)  # row 0, column 0
    np.testing.assert_allclose(table[1][:8], [np.sin(10000 ** (-i / 4)) for i in range(4)]
                               + [np.cos(10000 ** (-i / 4)) for i in range(4)], rtol=1e-6)  # fmt: skip
    np.testing.assert_allclose(table[1][8:], table[0][8:])
    np.testing.assert_allclose(table[3][:8], table[0][:8])  # row 1, column 0
    with pytest.raises(ValueError, match="exceeds the 2 x 2 table"):
        sincos_table(16, 2, grid_places((2, 3)))


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


def test_the_velocity_points_from_data_to_noise():
    x, noise = (jax.random.normal(k, (3, 4, 5)) for k in jax.random.split(jax.random.key(1)))
    t = jnp.asarray([0.2, 0.5, 0.9])
    x_t = flow.add_noise(x, noise, t)
    np.testing.assert_allclose(flow.velocity_from_clean(x_t, x, t), noise - x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(flow.add_noise(x, noise, jnp.zeros(3)), x)
    np.testing.assert_allclose(flow.add_noise(x, noise, jnp.ones(3)), noise)


def test_shifted_times_run_from_noise_to_data():
    times = flow.times(4, 3.0)
    np.testing.assert_allclose(times[jnp.asarray([0, -1])], [1.0, 0.0])
    np.testing.assert_allclose(times[2], 3 * 0.5 / (1 + 2 * 0.5))
    assert (np.diff(times) < 0).all()
    drawn = flow.sample_time(jax.random.key(0), (20_000,), mean=0.4, std=1.0, shift=1.0)
    np.testing.assert_allclose(np.median(drawn), 1 / (1 + np.exp(-0.4)), atol=0.01)
