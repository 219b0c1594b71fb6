"""The row groups of Parquet files: what their footers say when a source is made, and reading one of them later."""

import dataclasses
import hashlib
import itertools

import pyarrow as pa
import pyarrow.parquet

from gem_jax.data.example_ids import IdBounds, id_bounds
from gem_jax.data.identity import digest, file_digest
from gem_jax.data.parquet.columns import (
    check_columns,
    column_names,
    columns_found,
    optional_columns,
    partition_value,
)
from gem_jax.data.parquet.files import DataFile, named
from gem_jax.data.schema import Schema
from gem_jax.data.source import DataError

_FOOTER_END = 8
"""Bytes after a Parquet footer: its length and the format's name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenedFile:
    """A file as it was when the source was made.

    Attributes:
      file: where it is.
      footer_bytes: its last bytes, where Parquet tells which values lie where.
      footer_digest: of those bytes: another content has another one.
      partitions: column of the schema -> its value in all rows, from the names of folders.
    """

    file: DataFile
    footer_bytes: int
    footer_digest: str
    partitions: dict[str, pa.Scalar]

    def identity(self) -> str:
        """Digest of the file's content, and of the values that folders' names give its rows.

        Raises:
          DataError: it cannot be read.
        """
        with self.file.open() as stream, named(f"{self.file.name} cannot be read", "see that it may be read"):
            content = file_digest(stream, self.footer_bytes)
        if not self.partitions:
            return content
        return digest(content, {name: str(value) for name, value in self.partitions.items()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowGroup:
    """A row group of a file.

    Attributes:
      opened: the file.
      number: place in the file.
      first_row: of the file's rows.
      size: rows.
    """

    opened: OpenedFile
    number: int
    first_row: int
    size: int

    def __str__(self) -> str:
        return f"{self.opened.file.name}, row group {self.number}"

    def read(self, columns: list[str]) -> pa.Table:
        """Those of the columns that the file or the names of its folders have.

        Raises:
          DataError: the file is not what it was, or damaged: the message names the row group and the column.
        """
        file = self.opened.file
        with file.open() as stream:
            if _tail_digest(file, stream, self.opened.footer_bytes) != self.opened.footer_digest:
                raise DataError(
                    f"{file.name} changed while it was being read; leave a run's files as they are until it ends"
                )
            table = self._table(file.parse(stream), columns)
        for name, value in self.opened.partitions.items():
            if name in columns:
                table = table.append_column(name, pa.repeat(value, self.size))
        return table

    def _table(self, parsed: pyarrow.parquet.ParquetFile, columns: list[str]) -> pa.Table:
        names = set(parsed.schema_arrow.names)
        present = [name for name in columns if name in names]
        with named(f"{self} cannot be read", "write the file again"):
            try:
                return self._whole(parsed, present)
            except Exception:  # whatever it is: reading column by column finds which one it is about
                for name in present:
                    with named(f"{self}, column '{name}' cannot be read", "write the file again"):
                        self._whole(parsed, [name])
                raise

    def _whole(self, parsed: pyarrow.parquet.ParquetFile, columns: list[str]) -> pa.Table:
        """The columns, of as many rows as the footer says."""
        table = parsed.read_row_group(self.number, columns=columns)
        if table.num_rows != self.size:
            raise ValueError(f"it has {table.num_rows} rows, and {self.size} by the file's footer")
        return table


def open_files(
    files: tuple[DataFile, ...], schema: Schema, for_training: bool
) -> tuple[list[RowGroup], list[IdBounds]]:
    """Row groups of all files that have rows, and what their footers say of example ids.

    Raises:
      DataError: a file cannot be read or does not fit the schema, no file has rows, or some files lack an optional column that
        others have, so that its default would stand beside real values.
    """
    groups: list[RowGroup] = []
    bounds: list[IdBounds] = []
    with_column: dict[str, str] = {}  # column -> the first file that has it
    without: dict[str, str] = {}
    for file in files:
        with file.open() as stream:
            parsed = file.parse(stream)
            metadata = parsed.metadata
            if metadata.num_rows == 0:
                continue
            partitions = _partitions(file, schema)
            found = columns_found(parsed.schema_arrow, schema) + [(name, v.type) for name, v in partitions.items()]
            check_columns(found, schema, file.name, for_training)
            footer_bytes = metadata.serialized_size + _FOOTER_END
            opened = OpenedFile(
                file=file,
                footer_bytes=footer_bytes,
                footer_digest=_tail_digest(file, stream, footer_bytes),
                partitions={name: value for name, value in partitions.items() if name in column_names(schema)},
            )
        for name in optional_columns(schema):
            (with_column if name in dict(found) else without).setdefault(name, file.name)
        bounds += id_bounds(metadata, file.name)
        groups += _groups_of(opened, metadata)
    for name in with_column.keys() & without.keys():
        raise DataError(
            f"{without[name]} has no column '{name}' and {with_column[name]} has one; give it to all files or none"
        )
    return groups, bounds


def _partitions(file: DataFile, schema: Schema) -> dict[str, pa.Scalar]:
    return {name: partition_value(name, text, schema) for name, text in file.partitions.items()}


def _groups_of(opened: OpenedFile, metadata: pyarrow.parquet.FileMetaData) -> list[RowGroup]:
    sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    if min(sizes, default=0) < 0 or sum(sizes) != metadata.num_rows:
        raise DataError(
            f"{opened.file.name} has {metadata.num_rows} rows by its footer, and its row groups {sum(sizes)}; write it again"
        )
    firsts = [0, *itertools.accumulate(sizes)]
    return [
        RowGroup(opened=opened, number=number, first_row=firsts[number], size=size)
        for number, size in enumerate(sizes)
        if size
    ]


def _tail_digest(file: DataFile, stream: pa.NativeFile, length: int) -> str:
    with named(f"{file.name} cannot be read", "see that it is there and may be read"):
        stream.seek(max(stream.size() - length, 0))
        return hashlib.blake2b(stream.read(), digest_size=16).hexdigest()
