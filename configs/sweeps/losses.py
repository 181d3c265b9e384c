r"""Which losses help on scenes: one added or changed, in the training of `scenes.py:quick`.

`base` has the losses of `scenes.py:full`. Those of `quick` are `clean`, which this sweep has found.

Three seeds each. `tuned` continues the shipped weights for 150 steps on 100 trajectories; `tuned_kl` does so
with `text_kl`. 30 trainings, four hours on two cores, one for each process.

    export JAX_COMPILATION_CACHE_DIR=sweeps/cache    # the seeds of an arm share their programs
    for core in 0 1; do taskset -c $core python -m process_gen.sweep --jobs=claim \
        --config=configs/sweeps/losses.py --workdir=sweeps/losses & done; wait
    python -m process_gen.evaluate --output_dir=sweeps/losses/report --pool=config.seed \
        --compare=sweeps/losses/results.jsonl

The results are in process_gen/losses/README.md.
"""

from process_gen.experiment import cli

COMMAND = ("process_gen.train",)
DECISIONS = ("plan", "sketch", "inspect", "refine")


def get_config(variant):
    """The config of an arm.

    Raises:
      ValueError: there is no such arm.
    """
    if variant not in ARMS:
        raise ValueError(f"configs/sweeps/losses.py has no variant {variant!r}; it has {', '.join(ARMS)}")
    config, plain = cli.load_config("configs/scenes.py:quick"), cli.load_config("configs/scenes.py:full")
    with config.unlocked():
        config.losses = plain.losses.to_dict()
        ARMS[variant](config)
    return config.lock()


def _spatial(config):
    for stage, weight in (("sketch", 2.0), ("refine", 1.0)):
        config.losses[f"{stage}_spatial"] = dict(loss="spatial_consistency", stage=stage, weight=weight)


def _description(config):
    config.losses.plan_kept = dict(loss="description_consistency", stage="plan", weight=0.25)


def _semantic(config):
    for stage, weight in (("sketch", 1.0), ("refine", 0.5)):
        config.losses[f"{stage}_semantic"] = dict(loss="semantic_consistency", stage=stage, weight=weight)


def _clean(config):
    config.losses.update(cli.load_config("configs/scenes.py:quick").losses.to_dict())


def _balance(config):
    for stage in DECISIONS:
        config.losses[f"{stage}_decision"].balance = 0.5


def _clean_balance(config):
    _clean(config)
    _balance(config)


def _own(config):
    # So short a run sees each trajectory once or twice. So only batches with drawn images, every second one,
    # have a share of 0.5: a quarter of all images are the model's own.
    config.train.own.update(dict(share=0.5, every=2))


def _tuned(config):
    config.train.update(dict(init="scenes", steps=150))
    config.data.examples = 100


def _tuned_kl(config):
    _tuned(config)
    for stage in ("plan", "inspect", "refine"):
        config.losses[f"{stage}_kl"] = dict(
            loss="text_kl", stage=stage, weight=config.losses[f"{stage}_text"].weight
        )


ARMS = {
    "base": lambda config: None,
    "spatial": _spatial,
    "semantic": _semantic,
    "description": _description,
    "clean": _clean,
    "balance": _balance,
    "clean_balance": _clean_balance,
    "own": _own,
    "tuned": _tuned,
    "tuned_kl": _tuned_kl,
}


def get_hyper(hyper):
    """The settings of all cells: a seed of every arm before the next seed."""
    arms = [f"configs/sweeps/losses.py:{arm}" for arm in ARMS]
    return hyper.product([hyper.sweep("config.seed", [0, 1, 2]), hyper.sweep("config", arms)])
