"""Loads a training config stored as JSON: that of a phase of the recipe, or `config.json` of a run.

python -m process_gen.train --config=configs/recipe/stored.py:runs/a/phase_1.json --workdir=runs/a/phase_1
"""

from ml_collections import ConfigDict

from process_gen.common import files
from process_gen.experiment import builders


def get_config(path: str) -> ConfigDict:
    """Returns the locked config of a JSON file."""
    try:
        fields = files.read_json(path)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} is no config: a JSON object is one")
    return builders.from_json(fields)
