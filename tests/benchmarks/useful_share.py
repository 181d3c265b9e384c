"""What share of a row's tokens is useful at the paper's mix of data (`process_gen.data.mix`), by cause.

python tests/benchmarks/useful_share.py --config=configs/bagel_7b.py:paper
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from process_gen.experiment import cli

if __name__ == "__main__":  # bad flags are found before the slow imports
    flags.DEFINE_integer("trajectories", 6_000, "How many are drawn and packed.", lower_bound=1)
    cli.read_flags(config="configs/bagel_7b.py:paper")

from process_gen.data import mix
from process_gen.experiment import builders


def main(argv: Sequence[str]) -> int:
    """Draws, packs, prints."""
    del argv
    layout = builders.build_layout(flags.FLAGS.config)
    found = mix.paper_loader(layout, flags.FLAGS.trajectories).report(None)
    print(
        f"{found.rows} rows of {found.tokens:,} tokens, {found.turns_per_trajectory:.2f} turns per trajectory"
    )
    print(found.table())
    return 0


if __name__ == "__main__":
    cli.run(main, (ValueError,))
