"""Where broken steps go: out of the way of a resumed run, and never deleted."""

from __future__ import annotations

import itertools

from etils import epath

FOLDER = "quarantine"


def set_aside(step_dir: epath.Path, why: str) -> epath.Path:
    """Moves a step to `workdir/quarantine`, with a note that says why.

    Returns:
      Where it is now.
    """
    folder = step_dir.parent.parent / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    names = itertools.chain([step_dir.name], (f"{step_dir.name}-{n}" for n in itertools.count(2)))
    target = next(folder / name for name in names if not (folder / name).exists())
    step_dir.rename(target)
    (folder / f"{target.name}.txt").write_text(why + "\n")
    return target
