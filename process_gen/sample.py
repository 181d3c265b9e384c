"""Draws images for prompts, step by step.

    python -m process_gen.sample --prompts="a red circle left of a blue square"      # the shipped weights
    python -m process_gen.sample --workdir=runs/quick --prompts_file=prompts.txt --output_dir=out
    echo "two green stars" | python -m process_gen.sample --prompts=- --mode=single_pass
    python -m process_gen.sample --workdir=runs/7b_edit --prompts="make the cat red" --images=cat.jpg
    python -m process_gen.sample --workdir=runs/7b_edit --prompts="what is this?" --images=cat.jpg --answer
    python -m process_gen.sample --workdir=runs/7b_edit --prompts="add a hat" --images=tall.jpg --keep_shape

Input images take a model whose layout has room for them (`configs/bagel_7b.py:edit`). One is cropped to the
shape of that layout; `--keep_shape` draws at the image's own shape instead, sized as the base model sizes it.
Each shape is compiled separately.

A model that is too large for one device, or a long list of prompts, is spread over several:

    python -m process_gen.sample --workdir=runs/7b --mesh=tensor=4 --prompts_file=prompts.txt

Started on several hosts, as training is, each host draws its share of the prompts with its own copy of the
model on its own devices (`--mesh` is that of one host), and host 0 merges the results at the end.

Published weights, also after `convert`, carry no config: give one, such as
`--config=configs/bagel_7b.py:paper`.

Prints a table of the trajectories and writes to the output folder:

    trajectories.jsonl   every trajectory, each as soon as it is finished
    images/, strips/     every intermediate image, and one picture per prompt
    index.html           the first of them (--page_rows), step by step

The same command resumes where it was interrupted: prompts and seeds that are listed are not drawn again.
"""

from __future__ import annotations

from process_gen.experiment import cli  # before what reads its settings when it is imported

# isort: split
import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import jax
import numpy as np
from absl import flags

from process_gen.common.images import UNREADABLE
from process_gen.data.images import fit, model_sizes, read_rgb, rules_for
from process_gen.distributed import hosts, lock, stopping
from process_gen.evaluation.reading import verdict_of
from process_gen.models.autoencoder import geometry
from process_gen.reports import files
from process_gen.reports.listing import Key, Listing, key_of
from process_gen.reports.overview import describe
from process_gen.reports.page import write_page
from process_gen.sampling import Sampler, SamplerConfig
from process_gen.sampling.prompts import Prompt, encode_prompt, make_prompt
from process_gen.scenes import get_level, read_request
from process_gen.trajectory.markup import Malformed
from process_gen.trajectory.sampled import SampledTrajectory
from process_gen.trajectory.stages import Mode
from process_gen.weights import restore
from process_gen.weights.restore import Restored, sampler_of_flags

STDIN = "-"
MODES = ", ".join(mode.value for mode in Mode)


class InputError(ValueError):
    """Prompts or images that cannot be read; the message is fit for a user."""


@dataclasses.dataclass(frozen=True, eq=False)
class SampleRequest:
    """A prompt to draw; its `image` is None, or [H, W, 3] uint8 in the shape that `sampler` draws."""

    number: int
    text: str
    seed: int
    image: np.ndarray | None
    sampler: Sampler

    @property
    def prompt(self) -> Prompt:
        """Text and image, in the prompt slots that the layout has for them."""
        return make_prompt(self.sampler.model, self.text, self.image)

    @property
    def key(self) -> Key:
        """Identifies its sample in a listing."""
        return key_of(self.prompt.text, self.prompt.instruction, self.seed, self.image)


def read_prompts(source: bytes, name: str) -> list[str]:
    """One prompt per line; blank lines and a byte-order mark are skipped.

    Raises:
      InputError: not UTF-8 (the message says where), or no prompt in it.
    """
    try:
        text = source.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = source[: error.start].count(b"\n") + 1
        raise InputError(
            f"{name} is not UTF-8: byte {source[error.start]:#04x} at offset {error.start} (line {line}); "
            "convert it, for example with iconv -f latin1 -t utf-8"
        ) from None
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise InputError(f"{name} holds no prompt: it needs one per line")
    return prompts


def collect_prompts(given: Sequence[str], path: str | None, stdin: BinaryIO | None = None) -> list[str]:
    """The prompts of the command line, of a file, and of stdin where a prompt is `-`.

    Raises:
      InputError: an empty prompt, an unreadable file, or no prompt at all.
    """
    prompts: list[str] = []
    for text in given:
        if text == STDIN:
            prompts += read_prompts((stdin or sys.stdin.buffer).read(), "stdin")
        elif not text.strip():
            raise InputError("the prompt is empty")
        else:
            prompts.append(text.strip())
    if path is not None:
        try:
            content = pathlib.Path(path).read_bytes()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise InputError(f"cannot read the prompts file {path!r}: {why}") from None
        prompts += read_prompts(content, path)
    if not prompts:
        raise InputError('no prompt: pass --prompts="a red circle", --prompts=- for stdin, or --prompts_file')
    return prompts


def collect_images(paths: Sequence[str], prompts: int) -> list[np.ndarray] | None:
    """Reads the input image of each prompt, at its own size; one file is for all. None without `paths`.

    Raises:
      InputError: a file cannot be read, or their number is neither 1 nor `prompts`.
    """
    if not paths:
        return None
    if len(paths) not in (1, prompts):
        raise InputError(f"{prompts} prompts and {len(paths)} images: give one for all, or one per prompt")
    found = []
    for path in paths:
        try:
            found.append(read_rgb(path))
        except UNREADABLE as error:
            why = getattr(error, "strerror", None) or error
            raise InputError(f"cannot read the image {path!r}: {why}") from None
    return found * prompts if len(found) == 1 else found


def seeds_of(prompts: Sequence[str], first: int) -> list[int]:
    """A seed in [0, 2^32) for every prompt: `first`, and one more for each repetition of the same prompt."""
    times, seeds = dict.fromkeys(prompts, -1), []
    for prompt in prompts:
        times[prompt] += 1
        seeds.append((first + times[prompt]) % 2**32)
    return seeds


def ask(
    sampler: Sampler, prompts: Sequence[str], images: Sequence[np.ndarray] | None, keep_shape: bool
) -> list[SampleRequest]:
    """The prompts, with their images resized to the shape at which they are drawn.

    Raises:
      InputError: the model cannot hold an image of such a shape.
    """
    samplers, fitted = [sampler] * len(prompts), [None] * len(prompts)
    if images is not None and keep_shape:
        samplers, fitted = _in_their_shapes(sampler, images)
    elif images is not None:
        fitted = [fit(image, sampler.model.layout.image_size) for image in images]
    numbers, seeds = range(len(prompts)), seeds_of(prompts, sampler.config.seed)
    return [SampleRequest(*one) for one in zip(numbers, prompts, seeds, fitted, samplers, strict=True)]


def _in_their_shapes(
    sampler: Sampler, images: Sequence[np.ndarray]
) -> tuple[list[Sampler], list[np.ndarray]]:
    """For each image the sampler of its shape, and the image as the base model sizes it."""
    layout, config = sampler.model.layout, sampler.model.config
    side = geometry(config)[0] * config.latent_patch
    view = (config.vit.patch, config.vit.max_side) if layout.vit_tokens else None
    rules = rules_for((side, config.max_latent_side), view)
    shapes = [model_sizes(*image.shape[:2], *rules) for image in images]
    by_shape: dict[Any, Sampler] = {}
    for number, shape in enumerate(shapes):
        try:
            by_shape[shape] = by_shape.get(shape) or sampler.with_shape(*shape)
        except ValueError as error:
            raise InputError(f"prompt {number + 1}: its image cannot keep its shape ({error})") from None
    return [by_shape[shape] for shape in shapes], [rules[0](image) for image in images]


def shaped(sampler: Sampler, size: Sequence[str], keep_shape: bool) -> Sampler:
    """The sampler for images of another size; `size` is [height, width] as text.

    Raises:
      InputError: it is no size, the model cannot hold it, or `keep_shape` is set as well.
    """
    text = f"--image_size={','.join(size)}"
    if keep_shape:
        raise InputError(f"{text} and --keep_shape contradict each other: give one of them")
    if len(size) != 2 or not all(side.strip().isdecimal() and int(side) for side in size):
        raise InputError(f"{text} is no HEIGHT,WIDTH in pixels")
    try:
        return sampler.with_shape((int(size[0]), int(size[1])))
    except ValueError as error:
        raise InputError(f"{text}: {error}") from None


def judged(trajectory: SampledTrajectory, level: str | None) -> SampledTrajectory:
    """Adds the scenes judge's verdict on the final image, if the level can read prompt and image."""
    image = trajectory.image
    if level is None or image.shape[:2] != (get_level(level).image_size,) * 2:
        return trajectory
    request = read_request(trajectory.prompt, level)
    if isinstance(request, Malformed):
        return trajectory
    return dataclasses.replace(trajectory, verdict=verdict_of(request, image))


def by_sampler(asked: Sequence[SampleRequest]) -> Iterator[tuple[Sampler, list[SampleRequest]]]:
    """Each sampler, and what it is to draw."""
    for sampler in dict.fromkeys(one.sampler for one in asked):
        yield sampler, [one for one in asked if one.sampler is sampler]


def sample_prompts(
    asked: Sequence[SampleRequest], level: str | None, stop: stopping.Stop
) -> Iterator[tuple[int, SampledTrajectory]]:
    """Yields (number of the prompt, trajectory) as trajectories end, judged by a level of the scenes.

    Returns early if `stop` is asked for; it is checked after every round of turns.
    """
    for sampler, some in by_sampler(asked):
        texts, seeds, images = zip(*((one.text, one.seed, one.image) for one in some), strict=True)
        for progress in sampler.stream(texts, seeds, images):
            for i, trajectory in progress.finished:
                yield some[i].number, judged(trajectory, level)
            cli.show_progress(f"{progress.done} of {progress.total} prompts, {progress.turns} turns")
            if stop.asked:
                return


def answer_prompts(asked: Sequence[SampleRequest]) -> str:
    """Each prompt with the model's answer, as text to print."""
    answers: dict[int, str] = {}
    for sampler, some in by_sampler(asked):
        texts = sampler.answer([one.text for one in some], images=[one.image for one in some])
        answers |= {one.number: text for one, text in zip(some, texts, strict=True)}
    return "\n".join(f"{one.text}\n    {answers[one.number]}" for one in asked)


def settings_of(sampler: Sampler, restored: Restored, values: Any) -> dict[str, Any]:
    """How the samples of a run are drawn: the settings that must be the same when it is resumed."""
    shape = {"keep_shape": values.keep_shape, "image_size": list(sampler.model.layout.image_size)}
    weights = {"weights": restored.source, "which": values.which, "dtype": sampler.model.config.dtype}
    how = dataclasses.asdict(sampler.config)
    del how["seed"]  # every line has its own
    return {**weights, **shape, **how}


def report(listing: Listing, shown: Sequence[SampledTrajectory], settings: dict[str, Any]) -> pathlib.Path:
    """Writes the page of a run, and returns its path."""
    summary = {
        "weights": settings["weights"],
        "mode": settings["mode"].value,
        "Euler steps per image": settings["flow_steps"],
        "text guidance": settings["text_scale"],
        "temperature": settings["temperature"],
        "right": f"{listing.right} of {listing.judged} judged",
    }
    if len(listing) > len(shown):
        summary["shown"] = f"{len(shown)} of {len(listing)}"
    return write_page(listing.folder / "index.html", shown, "Sampled trajectories", summary)


# -------------------------------------------------------------------- command


def define_flags() -> None:
    cli.define_host_flags()
    restore.define_flags()
    flags.DEFINE_multi_string(
        "prompts", [], "A prompt; may be given again. `-` reads one per line from stdin."
    )
    flags.DEFINE_string("prompts_file", None, "UTF-8 file with one prompt per line.")
    flags.DEFINE_multi_string(
        "images", [], "An input image, one for all prompts or one for each; may be given again."
    )
    flags.DEFINE_boolean("keep_shape", False, "Draw at the shape of the input image instead of cropping it.")
    flags.DEFINE_list("image_size", None, "HEIGHT,WIDTH to draw at; the model's own by default.")
    flags.DEFINE_boolean("answer", False, "Answer the prompts in words instead of drawing.")
    flags.DEFINE_string("output_dir", "samples", "Folder to write to.")
    flags.DEFINE_string("mode", None, f"Of {MODES}; what the model was trained for by default.")
    flags.DEFINE_integer("seed", 0, "Of the prompts; equal prompts count up from it.")
    flags.DEFINE_integer("batch_size", 16, "Trajectories drawn side by side.")
    flags.DEFINE_float("temperature", None, "Of texts and decisions, 0 is greedy; the run's by default.")
    flags.DEFINE_float("text_scale", None, "Guidance by the newest text, 1 is off; the run's by default.")
    flags.DEFINE_float("image_scale", None, "Guidance by the images, 1 is off; the run's by default.")
    flags.DEFINE_integer("flow_steps", None, "Euler steps per image; the run's by default.")
    flags.DEFINE_float("decision_temperature", None, "Of decisions; that of texts by default.")
    flags.DEFINE_float("refine_threshold", None, "Probability from which on an image is corrected.")
    flags.DEFINE_integer("max_turns", None, "Turns at which a trajectory is cut; the run's by default.")
    flags.DEFINE_integer("max_flow_steps", None, "Euler steps of a trajectory, all images together; 0: any.")
    flags.DEFINE_boolean("resume", True, "Go on with what the output folder lists, instead of over it.")
    flags.DEFINE_boolean("strips", True, "Draw a picture of each trajectory.")
    flags.DEFINE_integer("page_rows", 200, "Trajectories on the page and in the table.", lower_bound=0)


def run(values: Any) -> str:
    """Does what the command does; returns what it prints at the end, nothing on all hosts but the first.

    Raises:
      One of `ERRORS`: bad input; the message is fit for a user.
      Stopped: a signal arrived; trajectories that ended before it are written.
    """
    hosts.name_processes(values.coordinator, values.num_processes, values.process_id)
    hosts.initialize()
    prompts = collect_prompts(values.prompts, values.prompts_file)
    if values.answer:
        return _run(prompts, values)
    files.check_writable(values.output_dir)
    with lock.hold(values.output_dir, "sampling") if hosts.is_lead() else contextlib.nullcontext():
        return _run(prompts, values)


def _run(prompts: Sequence[str], values: Any) -> str:
    """Loads the weights, and answers or draws."""
    names = [field.name for field in dataclasses.fields(SamplerConfig)]
    settings = {name: value for name in names if (value := getattr(values, name, None)) is not None}
    rows = min(values.batch_size, len(prompts))
    sampler, restored = sampler_of_flags(values, rows, **settings)
    if values.image_size:
        sampler = shaped(sampler, values.image_size, values.keep_shape)
    images = collect_images(values.images, len(prompts))
    asked = ask(sampler, prompts, images, values.keep_shape)
    for one in asked:
        encode_prompt(one.sampler.model, sampler.tokenizer, one.prompt)  # raises before any work
        if words := sampler.tokenizer.unknown(one.text):
            listed = ", ".join(map(repr, words))
            text = f"{listed} not in the vocabulary, so {one.text!r} may come out as anything"
            print(f"warning: {text}", file=sys.stderr)
    if values.answer:
        with hosts.lead_alone("the answers are given"):
            return answer_prompts(asked) if hosts.is_lead() else ""
    return _drawn(asked, settings_of(sampler, restored, values), restored.level_name, values)


def _drawn(asked: Sequence[SampleRequest], settings: dict[str, Any], level: str | None, values: Any) -> str:
    """Draws this host's share of what is not listed yet; returns the table and the paths."""
    host, count = jax.process_index(), jax.process_count()
    with hosts.lead_first("the output folder is read"):
        listing = Listing(
            values.output_dir, settings, values.resume or host > 0, (host, count), strips=values.strips
        )

    def missing() -> list[SampleRequest]:
        return [one for one in asked if one.key not in listing.done]

    if there := len(asked) - len(missing()):
        print(f"{there} of {len(asked)} prompts are listed already", file=sys.stderr)
    mine = [one for one in missing() if one.number % count == host]
    with stopping.deferred() as stop:
        for number, trajectory in sample_prompts(mine, level, stop):
            listing.add(trajectory, number)
    hosts.barrier("all hosts have drawn their prompts", hosts.PREPARE_SECONDS)
    # JAX aborts a process that works on after others exit, so all wait for the page.
    with hosts.lead_alone("the page is written"):
        if hosts.is_lead():
            listing.gather()
            shown = listing.first(values.page_rows)
            page = report(listing, shown, settings) if len(listing) else None
    if not hosts.is_lead():
        return ""
    if page is None:
        raise stopping.Stopped("no prompt was finished")
    if left := missing():
        raise stopping.Stopped(f"{len(asked) - len(left)} of {len(asked)} prompts are finished: {page}")
    more = [f"and {len(listing) - len(shown)} more"] if len(listing) > len(shown) else []
    return "\n".join([describe(shown), *more, "", str(page), str(listing.path)])


ERRORS = (
    *(InputError, cli.CommandError, hosts.HostMissing, hosts.HostSettingsError, *restore.ERRORS),
    OSError,
)
"""What a user can get wrong; each says so in one line."""


def main(argv: Sequence[str]) -> None:
    del argv
    if text := run(flags.FLAGS):
        print(text)


if __name__ == "__main__":
    define_flags()
    cli.run(main, ERRORS)
