"""The `data` section of a config whose data are Parquet files."""

import dataclasses
from typing import Annotated, Literal

import tyro

from gem_jax.data.checks import absent, check_given, is_slip
from gem_jax.data.example_ids import check_ids_differ
from gem_jax.data.parquet.files import exists, names_in
from gem_jax.data.parquet.source import ParquetSource
from gem_jax.data.schema import Schema
from gem_jax.data.source import DataError, Splits

_KIND = "a folder with train/ and test/ of .parquet files"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParquetConfig:
    """Training, test and perhaps validation files of one schema (columns: see `gem_jax.data.parquet`)."""

    path: str
    """Folder or URL (s3://, ..) with train/ and test/, and perhaps valid/, of .parquet files; or with train.parquet and so on."""
    columns: Annotated[Schema, tyro.conf.Fixed, tyro.conf.Suppress]
    """What the columns mean."""
    sort_histories: bool = False
    """Sort each history by age, oldest first; off refuses one in another order."""
    on_bad_row: Literal["raise", "skip"] = "raise"
    """What a row with a bad value does: end the run, or count nowhere, with a warning."""
    max_bad_rows: int = 1000
    """Bad rows of one part that are skipped; one more ends the run."""

    def __post_init__(self):
        if self.max_bad_rows < 0:
            raise DataError(f"data.max_bad_rows is {self.max_bad_rows}; it must be 0 or more")

    def schema(self) -> Schema:
        """The schema given."""
        return self.columns

    def build(self) -> Splits:
        """Opens the files and checks columns and types, and values of some row groups of each part; others as they are read.

        Raises:
          DataError: a file is missing, empty or not Parquet, a column is missing or of the wrong type, a row group looked at has a
            bad value, a part weighs nothing, a task's training labels are all the same, or two row groups surely share an
            example id.
        """
        check_given(self.path, _KIND)
        if not exists(self.path):
            raise absent(self.path, _KIND)
        places = {part: self._place(part) for part in ("train", "test", "valid")}
        parts = {part: self._source(part, place) for part, place in places.items() if place is not None}
        parts["train"].check_labels()
        check_ids_differ([bounds for source in parts.values() for bounds in source.id_bounds])
        for source in parts.values():
            source.check_weights()
            source.check()
        return Splits(**parts)

    def _source(self, part: str, place: str) -> ParquetSource:
        return ParquetSource(
            (place,),
            self.columns,
            part=part,
            sort_histories=self.sort_histories,
            max_bad_rows=self.max_bad_rows if self.on_bad_row == "skip" else None,
        )

    def _place(self, part: str) -> str | None:
        """Where the part is; None for a validation part that is not there."""
        root = self.path.removesuffix("/")
        found = [place for place in (f"{root}/{part}", f"{root}/{part}.parquet") if exists(place)]
        if len(found) > 1:
            raise DataError(f"{root} has both {part}/ and {part}.parquet; keep one of them")
        if found:
            return found[0]
        if part != "valid":
            raise DataError(
                f"{root} has neither {part}.parquet nor .parquet files in {part}/: data.path must hold both parts"
            )
        slip = next((name for name in names_in(root) if _means_valid(name.removesuffix(".parquet"))), None)
        if slip:
            raise DataError(f"{root} has '{slip}' and no 'valid'; rename it to that, or move it elsewhere")
        return None


def _means_valid(name: str) -> bool:
    return name.casefold() in ("val", "validation", "validate", "eval", "dev") or is_slip(name, "valid")
