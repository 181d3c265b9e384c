"""Spatial and semantic consistency, with latents that are pixels and behind an autoencoder with weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen import losses
from process_gen.losses import LossError, LossTable
from process_gen.losses.consistency import init_random_features, last_images, random_features, unchanged
from process_gen.models.autoencoder import to_tokens
from process_gen.models.config import NO_RANDOM_DROPS
from process_gen.models.unroll import blank_outputs
from process_gen.trajectory.controls import labels
from tests.models.tiny import FLUX, IDS, make_batch, make_flux, make_model

KEY = jax.random.key(0)
CORNER = np.array([False, True, True, True])
"""What stays of images that differ in their first latent token."""
NAMES = ("spatial_consistency", "semantic_consistency")


def stained(batch, rng):
    """The batch with images that are one picture, the first quarter of every second one inverted."""
    first = rng.integers(40, 216, batch.image.shape[2:], np.uint8)
    images = np.tile(first, (*batch.image.shape[:2], 1, 1, 1))
    images = images + rng.integers(-3, 4, images.shape)  # written anew
    images[:, 1::2, :4, :4] = 255 - images[:, 1::2, :4, :4]
    return batch.replace(image=jnp.asarray(images.astype(np.uint8)))


@pytest.fixture(scope="module", params=["patches", "flux"])
def seen(request):
    """A batch, its outputs with velocities drawn at random, and the two losses of velocities: one program."""
    batch = stained(make_batch(2, seed=2), np.random.default_rng(0))
    model, frozen = make_model()[0], None
    if request.param == "flux":
        model, frozen = make_flux()
    eye = init_random_features(KEY)

    def outputs_of(frozen):
        found = blank_outputs(model, batch, KEY, NO_RANDOM_DROPS, frozen)
        return found.clean, found.x_t, found.t, found.target

    clean, x_t, t, target = jax.jit(outputs_of)(frozen)

    def outputs(velocity, frozen):
        found = blank_outputs(model, batch, KEY, NO_RANDOM_DROPS, frozen)
        network = {"random_features": lambda pixels: random_features(eye, pixels)}
        return dataclasses.replace(found, velocity=velocity, networks=network)

    table = LossTable({name: dict(loss=name, stage="sketch", weight=1.0) for name in NAMES})

    def of(velocity, frozen):
        found, taught = outputs(velocity, frozen), labels(batch, IDS)
        terms = [table.term(row, found, batch, taught, KEY) for row in table.rows]
        sums = [jnp.sum(term.values * term.weights) for term in terms]
        return sum(sums), {name: term[:2] for name, term in zip(NAMES, terms, strict=True)}

    graded = jax.jit(jax.value_and_grad(of, has_aux=True))
    rng = np.random.default_rng(1)
    drawn = target + jnp.asarray(rng.standard_normal(target.shape), jnp.float32)

    def each(velocity):
        return graded(velocity, frozen)

    return batch, dict(clean=clean, x_t=x_t, t=t, target=target, drawn=drawn), each


def sketched(batch):
    """[B, S] bool: drafts with a flow target."""
    return np.asarray(batch.present & (batch.target >= 0) & ~batch.refines & (batch.image_weight > 0))


def test_what_counts_is_a_part_of_the_targets_and_nothing_that_is_padding(seen):
    batch, given, each = seen
    (_, terms), _ = each(given["drawn"])
    for name in NAMES:
        values, weights = map(np.asarray, terms[name])
        of_targets = weights[sketched(batch)]
        assert 0 < (of_targets > 0).mean() < 1 and np.isfinite(values).all(), name
        assert (values[weights > 0] > 0).any() and not weights[~sketched(batch)].any(), name
    weights = np.asarray(terms["spatial_consistency"][1])[:, :, 0]
    np.testing.assert_array_equal(weights > 0, np.asarray(unchanged(batch, 4)) & sketched(batch)[..., None])


def test_a_velocity_that_is_right_costs_next_to_nothing(seen):
    """A random autoencoder as small as this one smears what changed over the whole image."""
    _, given, each = seen
    share = 0.05 if given["clean"].shape[-1] == 48 else 0.6
    (_, right), _ = each(given["target"])
    (_, wrong), _ = each(given["drawn"])
    means = [
        {name: float((x * w).sum() / w.sum()) for name, (x, w) in terms.items()} for terms in (right, wrong)
    ]
    assert means[0]["spatial_consistency"] < share * means[1]["spatial_consistency"]
    assert means[0]["semantic_consistency"] < 1e-5 < means[1]["semantic_consistency"]


def test_gradients_reach_the_first_copy_of_what_counts_and_nothing_else(seen):
    batch, given, each = seen
    _, gradient = each(given["drawn"])
    gradient = np.asarray(gradient)
    assert np.isfinite(gradient).all() and not gradient[:, :, 1:].any()
    moved = np.abs(gradient).max((-1, -2, -3)) > 0
    assert moved.any() and not moved[~sketched(batch)].any()
    (total, _), _ = each(given["drawn"])
    step = 1e-3 * gradient / np.sqrt((gradient**2).sum())
    (higher, _), (lower, _) = each(given["drawn"] + step)[0], each(given["drawn"] - step)[0]
    slope = (higher - lower) / 2e-3
    np.testing.assert_allclose(slope, np.sqrt((gradient**2).sum()), rtol=0.05)
    assert lower < total < higher


def test_a_prediction_of_nothing_has_a_bounded_gradient(seen):
    _, given, each = seen
    grey = given["x_t"] / given["t"][..., None, None]  # the clean estimate is 0 everywhere
    norms = [float(jnp.linalg.norm(each(velocity)[1])) for velocity in (grey, given["drawn"])]
    assert norms[0] < 100 * norms[1]


def test_the_values_are_those_of_the_formula_where_latents_are_pixels(rng):
    model, _ = make_model()
    batch = stained(make_batch(3, seed=2), rng)
    outputs = blank_outputs(model, batch, KEY, NO_RANDOM_DROPS)
    outputs = dataclasses.replace(outputs, velocity=0.7 * outputs.target)
    row = {"kept": dict(loss="spatial_consistency", stage="sketch", weight=1.0, copies=2)}
    sums, counts = LossTable(row).terms(outputs, batch, labels(batch, IDS), KEY)
    weights = np.asarray(unchanged(batch, 4)) * sketched(batch)[..., None]
    error = np.square(outputs.clean_estimate - outputs.previous[:, :, None]).mean(-1)
    assert counts["kept"] == 2 * weights.sum() > 0
    np.testing.assert_allclose(sums["kept"], (error * weights[:, :, None]).sum(), rtol=1e-4)


def test_what_stays_is_found_in_pixels_whatever_latents_do(rng):
    batch = make_batch(2, seed=2)
    batch = stained(batch.replace(target=jnp.where(batch.present, 0, -1)), rng)
    latents = np.asarray(to_tokens(FLUX, batch.image, make_flux()[1]))
    assert (np.abs(np.diff(latents, axis=1)).max(-1) > 1e-3).all(), "no latent stayed as it was"
    later = np.broadcast_to(~np.asarray(batch.is_first), batch.present.shape)
    np.testing.assert_array_equal(unchanged(batch, 4), later[..., None] & CORNER)
    np.testing.assert_array_equal(unchanged(batch, 4, 0.0), np.zeros_like(later[..., None] & CORNER))
    np.testing.assert_array_equal(unchanged(batch, 4, 255), later[..., None] & np.ones(4, bool))
    blank = batch.replace(image=jnp.full_like(batch.image, 255))
    assert not np.asarray(unchanged(blank, 4)).any()


def test_what_a_turn_changes_is_found_in_pixels_and_first_turns_draw_what_is_not_blank(rng):
    batch = stained(make_batch(2, seed=2), rng)
    batch = batch.replace(target=jnp.where(batch.present, 0, -1))
    later = np.asarray(~batch.is_first & batch.present)
    found = np.asarray(losses.changed(batch, 4))
    np.testing.assert_array_equal(found[later], np.broadcast_to(~CORNER, found[later].shape))
    first, present = np.asarray(batch.is_first & batch.present), np.asarray(batch.present)
    assert found[first].all() and not found[~present].any()
    blank = batch.replace(image=jnp.full_like(batch.image, 255))
    assert not np.asarray(losses.changed(blank, 4)).any()


def test_nothing_has_to_stay_where_the_model_saw_an_image_of_its_own(rng):
    batch = stained(make_batch(2, seed=2), rng)
    whole = np.asarray(unchanged(batch, 4)).any(-1)
    own = np.zeros(batch.present.shape, bool)
    own[:, 1] = True  # the image before the third slot
    shown = jnp.where(own[..., None, None, None], 255 - batch.image, batch.image)
    found = np.asarray(unchanged(batch.replace(shown=shown), 4)).any(-1)
    follows = np.zeros_like(own)
    follows[:, 2] = ~np.asarray(batch.is_first)[:, 2]
    assert (whole & follows).any()
    np.testing.assert_array_equal(found, whole & ~follows)


def test_a_first_turn_goes_on_from_the_input_image(rng):
    changes = dict(prompt_image=True, instruction=4)
    model, _ = make_model(**changes)
    batch = make_batch(6, seed=2, **changes)
    picture = batch.image[:1, :1]
    batch = batch.replace(
        image=jnp.broadcast_to(picture, batch.image.shape),
        prompt_image=jnp.broadcast_to(picture, batch.prompt_image.shape),
    )
    kept = np.asarray(unchanged(batch, 4)).all(-1)
    given = np.take_along_axis(np.asarray(batch.has_prompt_image), np.asarray(batch.prompt_index), axis=1)
    first = np.asarray(batch.is_first)
    np.testing.assert_array_equal(kept, ~first | given)
    assert (first & given).any() and (first & ~given).any()
    outputs = blank_outputs(model, batch, KEY, NO_RANDOM_DROPS)
    wanted = np.asarray(to_tokens(model.config, picture))[0, 0]
    np.testing.assert_array_equal(outputs.previous[first & given], [wanted] * (first & given).sum())
    assert not np.asarray(outputs.previous)[first & ~given].any()


def test_a_field_of_the_record_says_what_stays(rng):
    model, _ = make_model(fields=(("kept", "mask"), ("much", "number")))
    batch = make_batch(3, seed=2)
    mask = np.zeros((*batch.present.shape, 8, 8), np.uint8)
    mask[..., 4:, 4:] = 1  # the last token
    mask[..., :4, :3] = 1  # a part of the first
    batch = batch.replace(extra={"kept": jnp.asarray(mask), "much": jnp.ones(batch.present.shape)})
    outputs = blank_outputs(model, batch, KEY, NO_RANDOM_DROPS)

    def count(**options):
        row = dict(loss="spatial_consistency", stage="sketch", weight=1.0, **options)
        return LossTable({"kept": row}).terms(outputs, batch, labels(batch, IDS), KEY)[1]["kept"]

    assert count(field="kept") == (sketched(batch) & ~np.asarray(batch.is_first)).sum() > 0
    for options, message in (
        (dict(field="much"), 'must be a mask of the image: config.data.fields.much = "mask"'),
        (dict(field="keep"), "config.data.fields.keep"),
        (dict(threshold=-1), "threshold must be a number of at least 0, in levels of 255, got -1"),
        (dict(copies=3), "copies must be a whole number from 1 to the 2 of config.layout.copies"),
    ):
        with pytest.raises(LossError) as found:
            count(**options)
        text = str(found.value)
        assert message in text and text.startswith("config.losses.kept, loss") and "\n" not in text


def test_the_last_image_of_a_trajectory_is_the_one_that_it_ends_with():
    batch = make_batch(8, seed=2)
    image, final, there = map(np.asarray, last_images(batch))
    present, index = np.asarray(batch.present), np.asarray(batch.prompt_index)
    for row, slot in np.argwhere(present):
        end = max(s for s in np.flatnonzero(present[row]) if index[row, s] == index[row, slot])
        np.testing.assert_array_equal(image[row, slot], np.asarray(batch.image)[row, end])
        assert final[row, slot] == (slot + max(int(batch.target[row, slot]), 0) == end)
        assert there[row, slot] == (batch.target[row, end] == 0)
    assert not there[~present].any()
    goes_on = batch.replace(is_last=jnp.zeros_like(batch.is_last))
    assert not np.asarray(last_images(goes_on)[2]).any()


def test_an_encoder_is_named_by_the_row_and_has_to_be_one():
    row = dict(loss="semantic_consistency", stage="sketch", weight=1.0)
    assert LossTable({"a": row}).networks == ("random_features",)
    with pytest.raises(KeyError, match="unknown network 'random_feature'; did you mean random_features"):
        LossTable({"a": row | {"network": "random_feature"}})
    losses.register_network("test_number", lambda key: {}, lambda weights, pixels: jnp.mean(pixels))
    table = LossTable({"a": row | {"network": "test_number"}})
    assert table.networks == ("test_number",)
    model, batch = make_model()[0], make_batch(2, seed=2)
    outputs = blank_outputs(model, batch, KEY, NO_RANDOM_DROPS)
    outputs = dataclasses.replace(outputs, networks={"test_number": jnp.mean})
    with pytest.raises(LossError, match=r"an encoder returns \[N, ..., D\]"):
        table.terms(outputs, batch, labels(batch, IDS), KEY)
    outputs = dataclasses.replace(outputs, networks={"reference": outputs})
    with pytest.raises(LossError, match="the network 'reference' is no encoder of images"):
        LossTable({"a": row | {"network": "reference"}}).terms(outputs, batch, labels(batch, IDS), KEY)


def test_an_encoder_may_see_in_half_precision(rng):
    """Squares of what it sees add up to more than float16 holds."""
    row = dict(loss="semantic_consistency", stage="sketch", weight=1.0, network="half")
    losses.register_network("half", lambda key: {}, lambda weights, pixels: pixels)
    model, batch = make_model()[0], stained(make_batch(2, seed=2), rng)
    outputs = blank_outputs(model, batch, KEY, NO_RANDOM_DROPS)
    outputs = dataclasses.replace(outputs, velocity=outputs.target + 0.1)
    found = []
    for dtype in (jnp.float16, jnp.float32):

        def see(pixels, dtype=dtype):
            return (1e3 * pixels.reshape(len(pixels), 1, -1)).astype(dtype)

        networks = dataclasses.replace(outputs, networks={"half": see})
        found.append(LossTable({"a": row}).terms(networks, batch, labels(batch, IDS), KEY))
    assert found[0][1]["a"] > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2), *found)
