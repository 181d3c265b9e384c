r"""Guidance x Euler steps x arm on the shipped weights, three seeds each: 36 cells, half an hour on 2 cores.

    export JAX_COMPILATION_CACHE_DIR=sweeps/cache    # cells share programs: each is compiled once
    python -m process_gen.sweep --config=configs/sweeps/guidance.py --workdir=sweeps/guidance --parallel=2
    python -m process_gen.evaluate --output_dir=sweeps/guidance/report --allow=flow_steps \
        --compare=sweeps/guidance/results.jsonl

All arms of one setting and seed have the same prompts and noise, so differences are paired. The results are
in notebooks/results.md.
"""

COMMAND = ("process_gen.evaluate", "--tasks=scenes", "--per_group=12", "--seeds=0,1,2", "--pictures=0")


def get_hyper(hyper):
    """The settings of all cells."""
    return hyper.product(
        [
            hyper.sweep("sampling.text_scale", [1.0, 2.0, 4.0]),
            hyper.sweep("sampling.flow_steps", [4, 8, 16, 32]),
            hyper.sweep("arms", ["process", "plan_only", "best_of=4"]),
        ]
    )
