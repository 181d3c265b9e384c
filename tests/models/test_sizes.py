"""The size table: published figures by shape alone, on a CPU, without their memory."""

import dataclasses

import jax
import numpy as np
import pytest

from process_gen.distributed.sharding import RULES
from process_gen.models.config import SIZES, model_config
from process_gen.models.unified import UnifiedModel
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.layout import Layout
from tests.models.tiny import IDS


def shapes(size: str, layout: Layout | None = None) -> dict[str, tuple[int, ...]]:
    if layout is None and size == "bagel_7b":
        layout = Layout(image_size=(512, 512), latent_grid=(32, 32), latent_values=64, turns=2)
    layout = layout or Layout()
    # Shapes do not depend on the autoencoder, whose weights are no part of the model.
    model = UnifiedModel(dataclasses.replace(SIZES[size], autoencoder="patches"), layout, IDS)
    tree = jax.eval_shape(model.init, jax.random.key(0), Batch.spec(layout, 1))["params"]
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "names"))
    return {"/".join(str(k.key) for k in path): (leaf.value.shape, leaf.names) for path, leaf in leaves}


def count(found: dict, part: str = "") -> int:
    return sum(int(np.prod(shape)) for name, (shape, _) in found.items() if part in name)


def test_bagel_7b_has_the_published_shapes():
    found = shapes("bagel_7b")
    layers = "backbone/layers"
    assert found[f"{layers}/und/q_proj/kernel"] == ((28, 3584, 3584), ("layers", "embed", "heads"))
    assert found[f"{layers}/gen/k_proj/kernel"] == ((28, 3584, 512), ("layers", "embed", "kv_heads"))
    assert found[f"{layers}/gen/q_proj/bias"] == ((28, 3584), ("layers", "heads"))
    assert found[f"{layers}/und/gate_proj/kernel"] == ((28, 3584, 18944), ("layers", "embed", "mlp"))
    assert found[f"{layers}/gen/q_norm/scale"] == ((28, 128), ("layers", "head_dim"))
    assert found["embedding"] == ((152064, 3584), ("vocab", "embed"))
    assert found["head/kernel"] == ((3584, 152064), ("embed", "vocab"))
    assert found["latent_in/kernel"][0] == (64, 3584) and found["latent_out/kernel"][0] == (3584, 64)
    experts = count(found, "/und/") + count(found, "/gen/")
    assert count(found, "/und/") == count(found, "/gen/")
    assert 13.0e9 < experts < 13.1e9  # 14B in all with embedding and head
    assert 14.0e9 < count(found) < 14.3e9
    assert not [name for name in found if "o_proj/bias" in name or "mlp/bias" in name]


def test_bagel_7b_has_the_published_vision_tower_where_images_are_seen_by_it():
    # Patches of pixels stand in for the latents, of which the tower sees pictures of 518 x 518 only.
    places = dict(image_size=(64, 64), latent_grid=(32, 32), latent_values=12, turns=2)
    found, without = (shapes("bagel_7b", Layout(**places, vit_grid=grid)) for grid in ((37, 37), (0, 0)))
    assert found["vit/patch_embedding/kernel"] == ((588, 1152), ("patch", "embed"))
    assert found["vit/position_embedding"] == ((4900, 1152), ("position", "embed"))
    assert found["vit/layers/q_proj/kernel"] == ((26, 1152, 1152), ("layers", "embed", "heads"))
    assert found["vit/layers/fc1/kernel"] == ((26, 1152, 4304), ("layers", "embed", "mlp"))
    assert found["vit/layers/fc2/bias"] == ((26, 1152), ("layers", "embed"))
    assert found["vit/post_layernorm/bias"] == ((1152,), ("norm",))
    assert found["connector/fc1/kernel"] == ((1152, 3584), ("embed", "mlp"))
    layer = 4 * (1152**2 + 1152) + 2 * 1152 * 4304 + 4304 + 1152 + 4 * 1152
    assert count(found, "vit/") == 26 * layer + 588 * 1152 + 1152 + 70**2 * 1152 + 2 * 1152 == 402_552_736
    assert count(found, "connector/") == 1152 * 3584 + 3584 + 3584**2 + 3584
    new = found.keys() - without.keys()
    assert all(name.startswith(("vit/", "connector/")) for name in new)
    assert {name: found[name] for name in without} == without
    assert {axis for name in new for axis in found[name][1]} <= RULES.keys()


@pytest.mark.parametrize("size", [size for size in SIZES if size != "bagel_7b"])
def test_small_sizes_have_room_for_the_scenes_vocabulary(size):
    from process_gen.data.tokenizers import scenes_tokenizer

    assert SIZES[size].vocab_size >= scenes_tokenizer().vocab_size
    assert count(shapes(size)) > 0


def test_the_shipped_size_fits_into_the_package():
    assert count(shapes("scenes_s")) * 4 <= 8 * 2**20


@pytest.mark.parametrize(
    ("size", "fields", "message"),
    [
        ("scenes_x", {}, "did you mean scenes_s"),
        ("debug", {"widht": 3}, "did you mean width"),
        ("debug", {"heads": 3, "kv_heads": 2}, "multiple of model.kv_heads"),
        ("debug", {"logit_chunk": 60}, r"logit_chunk \(60\) must divide .* \(320\): set it to 40"),
        ("debug", {"logit_chunk": -1}, "logit_chunk must be at least 0"),
        ("debug", {"vit": {"layer": 3}}, "model.vit has no field 'layer'; did you mean layers"),
        ("debug", {"vit": {"heads": 5}}, r"model.vit.width \(24\) must be a multiple of model.vit.heads"),
        ("debug", {"autoencoder": "flux"}, "needs its sizes in model.flux"),
        ("debug", {"flux": {"ch": 64}}, "has no FLUX autoencoder that model.flux could change"),
        ("bagel_7b", {"flux": {"ch": 48}}, "multiple of the 32 groups"),
        ("bagel_7b", {"flux": {"ch_mult": ()}}, "ch_mult must be numbers"),
        ("bagel_7b", {"flux": {"scale": 0.0}}, "scale must not be 0"),
        ("bagel_7b", {"flux": {"res_blocks": 0}}, "res_blocks must be at least 1"),
    ],
)
def test_sizes_that_cannot_be_are_refused_by_name(size, fields, message):
    with pytest.raises(ValueError, match=message):
        model_config(size, **fields)
