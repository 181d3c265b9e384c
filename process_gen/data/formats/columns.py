"""Converts trajectory objects to rows of an Arrow table, and rows of any table to plain objects."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from process_gen.common import files
from process_gen.data.formats.rows import PRESENT, Form
from process_gen.trajectory.record import SAMPLED_KEYS, TRAJECTORY_KEYS, TURN_KEYS, RecordError
from process_gen.trajectory.stages import TURN_FIELDS

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
EXTRA, EXTRA_IMAGES = "extra", "extra_images"
"""Columns for unknown fields: `extra` holds them as one JSON object, `extra_images` those that are images."""

_OF_SAMPLED = {"mode": pa.string(), "stopped": pa.string(), "seconds": pa.float64(), "verdict": pa.string()}
_JSON_KEYS = ("metadata", "verdict")
_KINDS = {"text": pa.string(), "image": IMAGE, "flag": pa.bool_(), "weight": pa.float64()}
_EXTRAS = {EXTRA: pa.string(), EXTRA_IMAGES: pa.list_(pa.struct([("name", pa.string()), *IMAGE]))}


def schema() -> pa.Schema:
    """Returns the columns of trajectories: one for each field of a record, the turns as a list of structs."""
    kinds = {field.name: _KINDS[field.type] for field in TURN_FIELDS}
    turn = {key: kinds.get(key, pa.string()) for key in TURN_KEYS} | _EXTRAS
    known = {"image": IMAGE, "turns": pa.list_(pa.struct(list(turn.items())))}
    known |= {key: _OF_SAMPLED.get(key, pa.int64()) for key in SAMPLED_KEYS}
    fields = {key: known.get(key, pa.string()) for key in TRAJECTORY_KEYS if key != "steps"} | _EXTRAS
    return pa.schema(list(fields.items()))


def to_row(value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an object with `turns` and images `{"bytes", "path"}` as a row of `schema`."""
    row = _known(value, TRAJECTORY_KEYS)
    row["turns"] = [_known(turn, TURN_KEYS) for turn in value["turns"]]
    return row | {key: json.dumps(row[key]) for key in _JSON_KEYS if key in row}


def _known(value: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    row = {key: one for key, one in value.items() if key in keys}
    others = {key: one for key, one in value.items() if key not in keys}
    held = {key: one for key, one in others.items() if isinstance(one, Mapping) and "bytes" in one}
    if held:
        row[EXTRA_IMAGES] = [{"name": key, **one} for key, one in held.items()]
    if rest := {key: one for key, one in others.items() if key not in held}:
        row[EXTRA] = json.dumps(rest)
    return row


def row_of(table: pa.Table, index: int, whole: pa.DataType | None = None) -> dict[str, Any]:
    """Returns one row as an object without nulls; dates and decimal numbers become texts, as in JSON.

    `whole` is the type of complete rows where the table was read without binary columns (`text_leaves`):
    `PRESENT` then stands for the missing values.
    """
    (row,) = table.slice(index, 1).to_pylist()
    return _plain(row if whole is None else _with_present(row, whole))


def _with_present(value: Any, kind: pa.DataType) -> Any:
    if isinstance(value, list) and not pa.types.is_map(kind):
        return [_with_present(one, kind.value_type) for one in value]
    if not isinstance(value, dict):
        return value
    missing = {field.name: _present(field.type) for field in kind if field.name not in value}
    return missing | {name: _with_present(one, kind.field(name).type) for name, one in value.items()}


def _present(kind: pa.DataType) -> Any:
    """Returns the placeholder of a value that was not read: `PRESENT` for bytes, structs of it, else None."""
    if pa.types.is_struct(kind):
        return {field.name: _present(field.type) for field in kind}
    return PRESENT if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else None


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items() if one is not None}
    return value if isinstance(value, (str, bytes, int, float)) or value is None else str(value)


def from_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the object of a row of `schema`, or of another writer's row with some of its columns.

    Raises RecordError: a column that holds JSON does not, or a turn is null.
    """
    value = _from_json(dict(row), "")
    if isinstance(value.get("turns"), list):
        turns = [*enumerate(value["turns"])]
        if empty := [place for place, turn in turns if not isinstance(turn, dict)]:
            raise RecordError(f"turns[{empty[0]}] is not an object with columns")
        value["turns"] = [_from_json(turn, f"turns[{place}].") for place, turn in turns]
    return value


def _from_json(value: dict[str, Any], field: str) -> dict[str, Any]:
    """Parses the JSON columns, and moves unknown fields from the `extra` columns back into the object."""
    for key in (*_JSON_KEYS, EXTRA):
        if isinstance(value.get(key), str):
            try:
                value[key] = files.from_json(value[key])
            except ValueError as error:
                raise RecordError(f"{field}{key} is not JSON: {error}") from None
    extra = value.pop(EXTRA, {})
    held = value.pop(EXTRA_IMAGES, None) or ()
    ours = isinstance(held, (list, tuple)) and all(isinstance(one, dict) and "name" in one for one in held)
    if not ours:  # somebody else's column
        return value | {EXTRA_IMAGES: held} | (extra if isinstance(extra, dict) else {EXTRA: extra})
    held = {image.pop("name"): image for image in held}
    return value | held | (extra if isinstance(extra, dict) else {EXTRA: extra})


def text_leaves(found: pq.ParquetSchema) -> list[str]:
    """Returns the paths of all columns but those of binary values, to read a table without its images.

    A nested column that has binary values alone is kept: the lengths of its lists would be lost with it.
    """
    leaves = [found.column(index) for index in range(len(found))]
    texts = [leaf.path for leaf in leaves if not _is_binary(leaf)]
    tops = {path.partition(".")[0] for path in texts}
    alone = [leaf.path for leaf in leaves if leaf.path.partition(".")[0] not in tops]
    return texts + [path for path in alone if "." in path]


def _is_binary(leaf: pq.ColumnSchema) -> bool:
    return leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type == "NONE"


COLUMNS = Form("trajectories", from_row, cheap=True)
"""Rows of `schema`."""
