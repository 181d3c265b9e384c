"""The compiled pieces of the sampler, lowered for devices that need not be there.

What `Sampler` calls in a step of the process, with shapes instead of arrays, each
program where it is first called: `begin`, `write` for each text, `draw` and `look`
for each image, `decide`, `commit`, and for images of all kinds `show` and `see`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from process_gen.models.unified import UnifiedModel
from process_gen.sampling import stages
from process_gen.sampling.config import SamplerConfig
from process_gen.sampling.stages import Work
from process_gen.sampling.text import TextSpec

Lower = Callable[[], jax.stages.Lowered]


def pieces(
    model: UnifiedModel,
    texts: dict[str, TextSpec],
    config: SamplerConfig,
    params: Any,
    frozen: Any,
    rows: int,
    mesh: Mesh,
    axes: tuple[str, ...],
) -> Iterator[tuple[str, Lower]]:
    """The names of the pieces, and what lowers each.

    Args:
      model: the modules.
      texts: how texts are decoded, see `sampler.text_specs`.
      config: how to sample.
      params, frozen: of the model and its autoencoder, `jax.ShapeDtypeStruct` with shardings.
      rows: trajectories under way at once.
      mesh: the devices.
      axes: mesh axes that the rows are split over; () where every device has them all.
    """
    flow, ids, layout = config.flow, model.ids, model.layout

    def placed(tree):
        def place(x):
            spec = P(None, axes) if x.ndim == 5 else P(axes) if x.ndim else P()
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

        return jax.tree.map(place, tree)

    def piece(function, *args):
        return (lambda: function.lower(*args)), placed(function.eval_shape(*args))

    array = jax.ShapeDtypeStruct
    images = placed(array((rows, *layout.image_size, 3), jnp.uint8))
    see, (latents, view) = piece(stages.see, model, images, frozen)
    if layout.prompt_image:
        yield "see", see
    prompts = stages.Prompts(
        tokens=placed(array((rows, layout.prompt), jnp.int32)),
        latents=latents if layout.prompt_image else None,
        view=view if layout.prompt_image else None,
        has_image=placed(array((rows,), jnp.bool_)) if layout.prompt_image else None,
        instruction=placed(array((rows, layout.instruction), jnp.int32)) if layout.instruction else None,
    )
    lower, (prompt, next_id, _) = piece(stages.begin, model, params, prompts)
    yield "begin", lower
    keys = placed(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows)))
    present = placed(array((rows,), jnp.bool_))

    def fresh(prompt, next_id):
        context = placed(stages.blank.eval_shape(model, params, prompt, next_id))
        return Work(context, {}, context.next_id, present, keys)

    work = fresh(prompt, next_id)
    if flow.own and "noimg" in flow.branches:
        work = work.replace(texts=fresh(prompt, next_id))
    for stage, name in (
        ("write", "plan"),
        ("draw", "sketch"),
        ("write", "inspect"),
        ("write", "refine"),
        ("draw", "refined"),
    ):
        if stage == "write":
            lower, new = piece(stages.write, model, texts[name], name, params, work)
            yield f"write {name}", lower
        else:
            lower, drawn = piece(stages.draw, model, flow, name, params, work)
            yield f"draw {name}", lower
            if name == "sketch":
                yield "show", piece(stages.show, model, drawn, frozen)[0]
                if not layout.prompt_image:
                    yield "see", see
            lower, new = piece(stages.look, model, params, latents, view, work)
            yield f"look {name}", lower
        if name == "inspect":
            choices = (ids.refine, ids.ins, ids.end_of_text)
            decide = (model, choices, config.temperature, "after_inspect", params, new.end)
            yield "decide", piece(stages.decide, *decide, work.adding(name, new))[0]
        work = work.adding(name, new)
    yield "commit", piece(stages.commit, model, params, work, present)[0]
