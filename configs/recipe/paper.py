"""The paper's recipe: subset 1, phase 1, self-sampling, subsets 2 and 3, phase 2 on all three, scores.

    launch/recipe.py cpu --config=configs/recipe/paper.py:scenes --workdir=runs/recipe
    launch/recipe.py tpu --config=configs/recipe/paper.py:bagel_7b --workdir=/shared/recipe

`:debug` takes seconds, for tests; `:scenes` has a tenth of the paper's samples; `:hung` the same on a level
whose texts name no cell; `:paper` as many as the paper, in the world of scenes; `:bagel_7b` has free prompts
and samples made by services. An ablation of the paper may be appended to each:

    _additions      steps that only add, and no critique
    _rewrites       modify, swap and remove as well, and no critique (same as _inspect_none)
    _self_critique  everything (same as _inspect_both, and as no ablation)
    _symbolic       subset 2 from the scene graph instead of self-sampled
    _inspect_none, _inspect_text, _inspect_image, _inspect_both
                    which of subsets 2 (text) and 3 (image) phase 2 trains on

Every key can be overridden: `--config.multi_turn.samples=1000`, `--config.phase_2.train.steps=400`.
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
    config.base = "configs/scenes.py:quick"  # training config of both phases, which may override it
    config.world = "scenes"  # or "services"
    config.prompts = ""  # a file with a prompt in each line, for services; scenes make their own
    config.licence = ""  # written into every record
    config.most_turns = 8  # of a trajectory; at most layout.turns of the base
    config.scenes = ConfigDict(dict(level="default", planted=0.4))  # planted: share of drafts with an error
    service = dict(
        model="",  # its name at the endpoint
        base_url="",  # "": OPENAI_BASE_URL, else OpenAI; the key is in OPENAI_API_KEY
        revision="",
        extra="",  # further fields of a request, as JSON or a .json file; null removes a default field
        workers=8,
        per_minute=0.0,  # most requests in a minute; 0 is no limit
        timeout=180.0,
        retries=5,
        tries=3,  # how often to ask until an answer can be parsed
        cache="",  # a folder that keeps answers; "": WORKDIR/answers
        price_in=0.0,  # of a million tokens, for the cost estimate
        price_out=0.0,
        price_image=0.0,
    )
    config.services = ConfigDict(
        dict(
            chat=dict(service),
            images=dict(service),
            size="1024x1024",
            steps=5,  # of a trajectory, at most (the paper's most)
            pair=0.3,  # how often a step adds two things where one would do
            answer_tokens=2000,
            phrase=True,  # the chat model writes the texts of the steps in its own words
        )
    )
    config.multi_turn = ConfigDict(
        dict(
            samples=PAPER["multi_turn"],
            rewrites=0.5,  # share of trajectories with modify, swap or remove; the paper does not say
            attempts=2,  # how many images of a step to make until the filter accepts one
        )
    )
    config.samples = ConfigDict(
        dict(
            prompts=40_000,  # drawn by the model after phase 1
            flags=("--batch_size=64", "--temperature=1.0"),  # of process_gen.sample
        )
    )
    config.conflict = ConfigDict(
        dict(
            consistent=PAPER["consistent"],
            conflicting=PAPER["conflicting"],
            critique="self_sampled",  # or "symbolic"
            imageless=0.5,  # share of corrections in words only, without a corrected image
        )
    )
    config.alignment = ConfigDict(
        dict(
            aligned=PAPER["aligned"],
            misaligned=PAPER["misaligned"],
            sampled=0.5,  # share of self-sampled drafts, if there are enough; the rest have planted errors
            imageless=0.5,
        )
    )
    # Keys of the base config that the phases override.
    no_table = dict(final_per_group=0)  # a stage of the recipe evaluates both phases
    config.phase_1 = ConfigDict(
        dict(
            eval=dict(no_table),
            layout=dict(after=0),  # leaves out the texts of agreement in subset 1
            sampling=dict(inspections=False),
            train=dict(steps=600),
        )
    )
    config.phase_2 = ConfigDict(
        dict(eval=dict(no_table), sampling=dict(inspections=True), train=dict(steps=600))
    )
    # Sampling weight of each subset in phase 2, and the stages with losses. Turns that are given have loss
    # weight 0 in their records anyway. Add your folders: name=dict(path=FOLDER, weight=..., stages=STAGES).
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
    """A tenth of the paper's samples, on the level whose texts name no cell; four Euler steps suffice."""
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
    """Free prompts: needs a chat and an image service, and a file of prompts."""
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
    """Phase 2 trains on subset 1 alone, for as many steps as with the others."""
    _without(config, "conflict")
    _without(config, "alignment")
    config.phase_2.sampling.inspections = False


def _inspect_text(config: ConfigDict) -> None:
    _without(config, "alignment")


def _inspect_image(config: ConfigDict) -> None:
    _without(config, "conflict")


def _without(config: ConfigDict, subset: str) -> None:
    config.mixture[subset].weight = 0.0
