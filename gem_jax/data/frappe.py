"""Frappe (mobile app usage) as BARS splits it, `Frappe_x1`: 10 categorical fields, a usage label, no history.

Reads the BARS folder (train.csv, valid.csv, test.csv: a header with `label` and the fields, whole numbers) or an npz
with `{train,valid,test}_x` integers [rows, 10] and `{train,valid,test}_y`. In both, ids may be numbered through all
fields (each field its own range); they are counted from 0 within their field here.
"""

import dataclasses
import pathlib
import zipfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.csv

from gem_jax.data.batch import Examples
from gem_jax.data.checks import Rows, check_labels, check_labels_differ, check_rows, existing_path
from gem_jax.data.columns import MemorySource
from gem_jax.data.schema import Categorical, Role, Schema, Table, Task
from gem_jax.data.source import PARTS, DataError, Splits, numbered

FIELDS = ("user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city")
ROLES: dict[str, Role] = {"user": "user", "item": "ad", "cost": "ad"}
"""All other fields are context."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrappeConfig:
    """The parts as given (7:2:1), one table per field, label `usage`.

    An example's id is its row in its part, the part folded in (`source.numbered`); times are unknown.
    """

    path: str
    """Folder of the BARS csv files, or an npz file of the same arrays."""

    def schema(self) -> Schema:
        """The data's schema; reads all parts, because they say how many ids each field has."""
        return self.build().schema

    def build(self) -> Splits:
        """Reads all parts.

        Raises:
          DataError: a file is missing, empty or of another format, a label is not from 0 to 1, or all training labels are the same.
        """
        place = existing_path(self.path, "the Frappe_x1 folder or npz file")
        parts = {name: _read_csv(place / f"{name}.csv") if place.is_dir() else _read_npz(place, name) for name in PARTS}
        for name, (values, labels) in parts.items():
            file = place / f"{name}.csv" if place.is_dir() else place
            check_rows(file, len(values))
            check_labels(labels, Rows.first(file, len(labels)), "label" if place.is_dir() else f"{name}_y")
            if name == "train":
                check_labels_differ(labels[:, None], ["usage"], file)
        lowest = np.min([values.min(axis=0) for values, _ in parts.values()], axis=0)
        highest = np.max([values.max(axis=0) for values, _ in parts.values()], axis=0)
        schema = Schema(
            tables=tuple(Table(name=f, rows=int(n)) for f, n in zip(FIELDS, highest - lowest + 1, strict=True)),
            categoricals=tuple(Categorical(name=f, table=f, role=ROLES.get(f, "context")) for f in FIELDS),
            tasks=(Task(name="usage"),),
            domains=("app",),
        )
        return Splits(
            **{
                name: MemorySource(schema=schema, examples=_examples(name, values - lowest, labels))
                for name, (values, labels) in parts.items()
            }
        )


def _examples(part: str, values: np.ndarray, labels: np.ndarray) -> Examples:
    count = len(labels)
    return Examples(
        ids={name: values[:, [k]].astype(np.int32) for k, name in enumerate(FIELDS)},
        dense=np.zeros((count, 0), np.float32),
        vectors={},
        sequences={},
        labels=labels[:, None],
        domain=np.zeros(count, np.int32),
        weight=np.ones(count, np.float32),
        user=values[:, FIELDS.index("user")],
        example_id=numbered(part, np.arange(count)),
        time_s=np.full(count, -1, np.int64),
        true_probability=np.full((count, 1), np.nan, np.float32),
    )


def _read_npz(file: pathlib.Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Field values int64 [rows, 10] and labels float32 [rows] of a part."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            values, labels = arrays[f"{part}_x"], arrays[f"{part}_y"]
    except KeyError as error:
        raise DataError(
            f"{file} has no array {error.args[0].split()[0]}; Frappe's npz has {part}_x and {part}_y"
        ) from error
    except (ValueError, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{file} is not an npz file: set data.path to the Frappe_x1 folder or npz file") from error
    if values.dtype.kind not in "iu" or values.ndim != 2 or values.shape[1] != len(FIELDS):
        raise DataError(
            f"{file}: '{part}_x' is {values.dtype} {values.shape}; it must be integers [rows, {len(FIELDS)}]"
        )
    if labels.shape != (len(values),):
        raise DataError(f"{file}: '{part}_y' has shape {labels.shape} for {len(values)} rows of '{part}_x'")
    return values.astype(np.int64), labels.astype(np.float32)


def _read_csv(file: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Field values int64 [rows, 10] and labels float32 [rows] of one csv file."""
    existing_path(str(file), "the folder of Frappe_x1's train.csv, valid.csv and test.csv")
    types = dict.fromkeys(("label", *FIELDS), pa.float64())
    try:
        table = pyarrow.csv.read_csv(file, convert_options=pyarrow.csv.ConvertOptions(column_types=types))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read as Frappe csv: {str(error).splitlines()[0]}") from error
    for name in types:
        if name not in table.column_names:
            raise DataError(f"{file} has no column '{name}'; Frappe_x1 has label and {', '.join(FIELDS)}")
        if table[name].null_count:
            raise DataError(
                f"{file}: column '{name}' has {table[name].null_count} empty cells; fill or remove those rows"
            )
    values = np.stack([table[name].to_numpy() for name in FIELDS], axis=1)
    return values.astype(np.int64), table["label"].to_numpy().astype(np.float32)
