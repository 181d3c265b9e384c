r"""The process on the level whose texts name no cell, and what it is compared with, three seeds each.

12 trainings, a quarter of an hour each on two cores.

    export JAX_COMPILATION_CACHE_DIR=sweeps/cache    # cells share programs: each is compiled once
    python -m process_gen.sweep --config=configs/sweeps/evidence.py --workdir=sweeps/evidence
    python -m process_gen.evaluate --output_dir=sweeps/evidence/report --pool=config.seed \
        --compare=sweeps/evidence/results.jsonl

All arms start from the shipped weights and have as many training FLOP. Two draw one image, with a plan or
without one; one draws in steps that nobody inspects.
"""

COMMAND = ("process_gen.train", "--config.eval.final_per_group=40")


def get_hyper(hyper):
    """The settings of all cells."""
    arms = [f"configs/scenes.py:hung{arm}" for arm in ("", "_plan_only", "_single_pass", "_no_inspection")]
    return hyper.product([hyper.sweep("config", arms), hyper.sweep("config.seed", [0, 1, 2])])
