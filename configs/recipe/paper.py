"""The paper's recipe: subset 1, phase 1, self-sampling, subsets 2 and 3, phase 2 on all three, scores.

    launch/recipe.py cpu --config=configs/recipe/paper.py:scenes --workdir=runs/recipe
    launch/recipe.py tpu --config=configs/recipe/paper.py:bagel_7b --workdir=/shared/recipe

`:debug` seconds, for tests; `:scenes` a tenth of the paper's samples; `:hung` the same on a level whose
texts name no cell; `:paper` as many as the paper, in the world of scenes; `:bagel_7b` free prompts, by
services. Behind each of them, an ablation of the paper:

    _additions      steps that only add, and no critique
    _rewrites       modify, swap and remove as well, and no critique (as _inspect_none)
    _self_critique  all of it (as _inspect_both, and as no ablation)
    _symbolic       subset 2 from the scene graph instead of self-sampled
    _inspect_none, _inspect_text, _inspect_image, _inspect_both
                    which of subsets 2 (text) and 3 (image) are in phase 2

Every leaf can be overridden: `--config.multi_turn.samples=1000`, `--config.phase_2.train.steps=400`.
"""

from ml_collections import ConfigDict

STAGES = ("plan", "sketch", "inspect", "refine")
PAPER = dict(multi_turn=32_012, consistent=6_905, conflicting=8_296, aligned=5_000, misaligned=10_000)


def get_config(variant: str = "scenes") -> ConfigDict:
    """Returns the locked config of a size, with an ablation behind it or none."""
    sizes = {"debug": _debug, "scenes": _scenes, "hung": _hung, "paper": _paper, "bagel_7b": _bagel}
    ablations = {
        "": lambda config: None,
        "_additions": _additions,
        "_rewrites": _inspect_none,
        "_self_critique": lambda config: None,
        "_symbolic": _symbolic,
        "_inspect_none": _inspect_none,
        "_inspect_text": _inspect_text,
        "_inspect_image": _inspect_image,
        "_inspect_both": lambda config: None,
    }
    variants = {size + ablation: (size, ablation) for size in sizes for ablation in ablations}
    if variant not in variants:
        raise ValueError(f"configs/recipe/paper.py has no variant {variant!r}; it has {', '.join(variants)}")
    size, ablation = variants[variant]
    config = _base()
    sizes[size](config)
    ablations[ablation](config)
    return config.lock()


def _base() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.base = "configs/scenes.py:quick"  # what both phases are trained with, but for what they override
    config.world = "scenes"  # or "services"
    config.prompts = ""  # a file with a prompt in each line, for services; scenes draw their own
    config.licence = ""  # of every record
    config.most_turns = 8  # of a trajectory; layout.turns of the base
    config.scenes = ConfigDict(
        dict(level="default", planted=0.4)
    )  # share of drafts that a planted error hits
    service = dict(
        model="",  # as the endpoint calls it
        base_url="",  # OPENAI_BASE_URL, or OpenAI's own; the key is OPENAI_API_KEY's
        revision="",
        extra="",  # further fields of a request, as JSON; null leaves one out
        workers=8,
        per_minute=0.0,  # most requests; 0 is no limit
        timeout=180.0,
        retries=5,
        tries=3,  # until an answer can be read
        cache="",  # a folder of answers; `answers` in the workdir where empty
        price_in=0.0,  # of a million tokens, for the estimate
        price_out=0.0,
        price_image=0.0,
    )
    config.services = ConfigDict(
        dict(
            chat=dict(service),
            images=dict(service),
            size="1024x1024",
            steps=5,  # of a trajectory, at most (the paper's most)
            pair=0.3,  # how often a step adds two things, where it need not
            answer_tokens=2000,
            phrase=True,  # the chat model puts the steps into words of its own
        )
    )
    config.multi_turn = ConfigDict(
        dict(
            samples=PAPER["multi_turn"],
            rewrites=0.5,  # share of trajectories with modify, swap or remove; the paper does not say
            attempts=2,  # images of a step, until one is accepted
        )
    )
    config.samples = ConfigDict(
        dict(
            prompts=40_000,  # that phase 1 draws
            flags=("--batch_size=64", "--temperature=1.0"),  # of process_gen.sample
        )
    )
    config.conflict = ConfigDict(
        dict(
            consistent=PAPER["consistent"],
            conflicting=PAPER["conflicting"],
            critique="self_sampled",  # or "symbolic"
            imageless=0.5,  # share of the corrections without a corrected image
        )
    )
    config.alignment = ConfigDict(
        dict(
            aligned=PAPER["aligned"],
            misaligned=PAPER["misaligned"],
            sampled=0.5,  # share of self-sampled drafts, as far as there are enough; the others are planted
            imageless=0.5,
        )
    )
    # What the phases override of the base: any of its keys.
    no_table = dict(final_per_group=0)  # the recipe evaluates both phases itself
    config.phase_1 = ConfigDict(
        dict(eval=dict(no_table), sampling=dict(inspections=False), train=dict(steps=600))
    )
    config.phase_2 = ConfigDict(
        dict(eval=dict(no_table), sampling=dict(inspections=True), train=dict(steps=600))
    )
    # Folders of your own go in beside the subsets: name=dict(path=FOLDER, weight=..., stages=STAGES).
    # Losses of each subset in phase 2; what is given has weight 0 in its records, whatever stands here.
    config.mixture = ConfigDict(
        dict(
            multi_turn=dict(weight=float(PAPER["multi_turn"]), stages=STAGES),
            conflict=dict(weight=float(PAPER["consistent"] + PAPER["conflicting"]), stages=STAGES),
            alignment=dict(weight=float(PAPER["aligned"] + PAPER["misaligned"]), stages=STAGES),
        )
    )
    config.evaluate = ConfigDict(
        dict(flags=("--tasks=scenes", "--task_args=scenes.level=default", "--per_group=40"))
    )
    return config


def _debug(config: ConfigDict) -> None:
    """A few samples and steps."""
    config.base = "configs/scenes.py:debug"
    config.multi_turn.samples = 24
    config.samples.update(dict(prompts=4, flags=("--batch_size=4",)))
    config.conflict.update(dict(consistent=4, conflicting=6))
    config.alignment.update(dict(aligned=4, misaligned=6))
    config.phase_1.train.steps = config.phase_2.train.steps = 4
    config.evaluate.flags = (
        "--tasks=scenes",
        "--task_args=scenes.level=default",
        "--per_group=1",
        "--batch_size=8",
        "--pictures=2",
    )


def _scenes(config: ConfigDict) -> None:
    """A tenth of the paper's samples."""
    for group, names in _counts():
        for name in names:
            config[group][name] = -(-config[group][name] // 10)
    config.samples.prompts = 4_000


def _hung(config: ConfigDict) -> None:
    """A tenth of the paper's samples on the level whose texts name no cell; four Euler steps do there."""
    _scenes(config)
    config.base = "configs/scenes.py:hung"
    config.scenes.level = "hung"
    config.samples.flags = ("--batch_size=128", "--temperature=1.0", "--flow_steps=4")
    config.evaluate.flags = ("--tasks=scenes", "--task_args=scenes.level=hung", "--per_group=40")


def _paper(config: ConfigDict) -> None:
    """The paper's numbers of samples; the shipped checkpoint's length of training."""
    config.base = "configs/scenes.py:full"
    config.phase_1.train.steps = config.phase_2.train.steps = 5_000


def _bagel(config: ConfigDict) -> None:
    """Free prompts; two services have to be named, and a file of prompts."""
    config.base = "configs/bagel_7b.py:paper"
    config.world = "services"
    config.most_turns = 10
    config.samples.flags = ("--batch_size=16", "--temperature=1.0", "--dtype=bfloat16")
    config.phase_1.train.steps = config.phase_2.train.steps = 5_000  # the paper says 10,000, and no shares
    config.evaluate.flags = ()  # as --tasks=geneval-hf --task_args=geneval-hf.metadata=FILE


def _counts() -> tuple[tuple[str, tuple[str, ...]], ...]:
    return (
        ("multi_turn", ("samples",)),
        ("conflict", ("consistent", "conflicting")),
        ("alignment", ("aligned", "misaligned")),
    )


def _additions(config: ConfigDict) -> None:
    config.multi_turn.rewrites = 0.0
    _inspect_none(config)


def _symbolic(config: ConfigDict) -> None:
    config.conflict.critique = "symbolic"


def _inspect_none(config: ConfigDict) -> None:
    """Phase 2 goes on with subset 1 alone, as long as the others train."""
    _without(config, "conflict")
    _without(config, "alignment")
    config.phase_2.sampling.inspections = False


def _inspect_text(config: ConfigDict) -> None:
    _without(config, "alignment")


def _inspect_image(config: ConfigDict) -> None:
    _without(config, "conflict")


def _without(config: ConfigDict, subset: str) -> None:
    config.mixture[subset].weight = 0.0
