"""A raw log, whatever it lies in: CSV or Parquet, a file or a folder, or a table in memory; read in batches as often as wanted.

Whatever holds the rows, they come out the same: in the order of the files (sorted by path) and of the rows in them, in batches of
`BATCH_ROWS`, with encodings taken off (dictionaries, views, decimals).
"""

import os
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset

from gem_jax.data.parquet.files import arrow_filesystem, named
from gem_jax.data.source import DataError
from gem_jax.prepare.types import cast, plain_schema

BATCH_ROWS = 2**17
"""Rows of a batch: what is held in memory of a log at any time, and the order in which statistics are summed."""

FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".tsv": "tsv",
    ".tsv.gz": "tsv",
}
NULLS = ("", "null", "NULL")
"""Cells of a CSV file that are absent values."""

_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"

_BAD_CELL = re.compile(
    r"In CSV column #(\d+): (?:Row #(\d+): )?CSV conversion error to .*?: (?:invalid value )?(.*)", re.DOTALL
)
_BAD_ROW = re.compile(r"CSV parse error: Row #(\d+): (.*)", re.DOTALL)


@runtime_checkable
class Log(Protocol):
    """Rows in batches.

    Attributes:
      name: of the log, for messages.
      schema: its columns.
    """

    name: str
    schema: pa.Schema

    def batches(self, columns: Iterable[str]) -> Iterator[pa.Table]:
        """Tables of `BATCH_ROWS` rows, the last one shorter, with these columns; every call starts at the first row."""
        ...

    def count_rows(self) -> int:
        """How many rows there are."""
        ...


def open_log(log: Any, types: dict[str, pa.DataType] | None = None) -> Log:
    """The log at a path, or in a table.

    Args:
      log: a CSV or Parquet file, a folder of either (subfolders `column=value` are columns), also by a URL that fsspec knows; or a
        table that pyarrow, pandas 2.2 or Polars made: anything with `__arrow_c_stream__`.
      types: what columns of CSV text are; others are guessed from the text.

    Raises:
      DataError: nothing is there, it is of another kind, its files do not fit together, or a column stands twice.
    """
    if isinstance(log, str | os.PathLike):
        return _Files(os.path.expanduser(log), types or {})
    if not hasattr(log, "__arrow_c_stream__"):
        raise DataError(
            f"a log cannot be a '{type(log).__name__}'; give a path, or a table of pyarrow, Polars or pandas (2.2 or newer)"
        )
    return _Table(pa.RecordBatchReader.from_stream(log).read_all())


def _in_batches(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """The same rows in tables of `BATCH_ROWS`, each column in one piece."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        while batch.num_rows:
            part = batch.slice(0, BATCH_ROWS - count)
            held.append(part)
            count += part.num_rows
            batch = batch.slice(part.num_rows)
            if count == BATCH_ROWS:
                yield pa.Table.from_batches(held, schema).combine_chunks()
                held, count = [], 0
    if held:
        yield pa.Table.from_batches(held, schema).combine_chunks()


class _Table:
    """A log in memory."""

    def __init__(self, table: pa.Table):
        self.name = "the table"
        _check_names(table.schema, self.name)
        self.schema = plain_schema(table.schema)
        self._table = table

    def count_rows(self) -> int:
        return self._table.num_rows

    def batches(self, columns: Iterable[str]) -> Iterator[pa.Table]:
        names = list(columns)
        schema = pa.schema([self.schema.field(name) for name in names])
        batches = (_plain_batch(batch, schema, {}) for batch in self._table.select(names).to_batches())
        yield from _in_batches(batches, schema)


class _Files:
    """A log in files of one format."""

    def __init__(self, path: str, types: dict[str, pa.DataType]):
        self.name = path
        self._types = types
        with named(f"{path} cannot be read", "see that the path is right and its file system installed"):
            filesystem, root = fsspec.core.url_to_fs(path)
            inner, kind = _find(filesystem, root, path)
        self._is_csv = kind != "parquet"
        self._delimiter = {"tsv": "\t"}.get(kind, ",")
        files = arrow_filesystem(filesystem)
        self._fragments = [self._format().make_fragment(f"{root}/{name}" if name else root, files) for name in inner]
        self._own = [_own_schema(fragment) for fragment in self._fragments]
        self._folders = [_folder_values(name) for name in inner]
        self.schema = self._unified()
        self._count = self._settle_types() if self._is_csv else sum(f.count_rows() for f in self._fragments)

    def count_rows(self) -> int:
        return self._count

    def batches(self, columns: Iterable[str]) -> Iterator[pa.Table]:
        schema = pa.schema([self.schema.field(name) for name in columns])
        yield from _in_batches(self._read(schema), schema)

    def _format(self) -> pyarrow.dataset.FileFormat:
        if not self._is_csv:
            return pyarrow.dataset.ParquetFileFormat()
        return pyarrow.dataset.CsvFileFormat(
            parse_options=pyarrow.csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                null_values=list(NULLS), strings_can_be_null=True, column_types=self._types
            ),
        )

    def _unified(self) -> pa.Schema:
        """Columns of all files and folders' names; each of a type that holds the values of every file."""
        fields: dict[str, pa.Field] = {}
        origin: dict[str, str] = {}
        for fragment, own in zip(self._fragments, self._own, strict=True):
            for field in plain_schema(own):
                before = fields.setdefault(field.name, field)
                first = origin.setdefault(field.name, fragment.path)
                fields[field.name] = self._wider(before, field, first, fragment.path)
        for name in {key: None for values in self._folders for key in values}:
            if name in fields:
                raise DataError(f"{self.name}: '{name}' is a column of the files and a folder's name; rename one")
            texts = [values.get(name) for values in self._folders]
            is_integer = all(text is None or re.fullmatch(r"0|-?[1-9]\d{0,17}", text) for text in texts)
            fields[name] = pa.field(name, pa.int64() if is_integer else pa.string())
        return pa.schema(fields.values())

    def _wider(self, a: pa.Field, b: pa.Field, first: str, second: str) -> pa.Field:
        try:
            (field,) = pa.unify_schemas([pa.schema([a]), pa.schema([b])], promote_options="permissive")
            return field
        except pa.ArrowException as error:
            if self._is_csv:
                return pa.field(a.name, pa.string())
            raise DataError(f"'{a.name}' is {a.type} in {first} and {b.type} in {second}; write them alike") from error

    def _settle_types(self) -> int:
        """Reads all text, and widens what a column is taken for until every cell fits; the number of rows.

        What pyarrow takes for reals is tried as integers of 64 bits first: hashes beyond 2^63 would lose bits.
        """
        for place, field in enumerate(self.schema):
            if field.type == pa.float64() and field.name not in self._types:
                self.schema = self.schema.set(place, pa.field(field.name, pa.uint64()))
        while True:
            try:
                return sum(batch.num_rows for batch in self._read(self.schema))
            except _CellError as error:
                place = self.schema.get_field_index(error.column)
                wider = _wider_type(self.schema.field(place).type, error.cell)
                self.schema = self.schema.set(place, pa.field(error.column, wider))

    def _read(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for fragment, own, folders in zip(self._fragments, self._own, self._folders, strict=True):
            present = [name for name in schema.names if name in own.names]
            # pyarrow 26 breaks list views that it casts while it scans, so Parquet is read as it is and cast here.
            scanned = pa.schema([(schema if self._is_csv else own).field(name) for name in present])
            try:
                # Only one thread counts the lines that messages name.
                for batch in fragment.to_batches(schema=scanned, columns=present, use_threads=not self._is_csv):
                    yield _plain_batch(batch, schema, folders)
            except (pa.ArrowException, OSError) as error:
                raise _explained(error, fragment.path, own.names) from error


def _own_schema(fragment: pyarrow.dataset.Fragment) -> pa.Schema:
    """The columns of a file itself."""
    try:
        own = fragment.physical_schema
    except (pa.ArrowException, OSError) as error:
        raise _explained(error, fragment.path, []) from error
    _check_names(own, fragment.path)
    return own


def _folder_values(inner: str) -> dict[str, str | None]:
    """What the folders between a log and its file say, as Hive names them: `column=value`."""
    pairs = (part.partition("=") for part in inner.split("/")[:-1])
    values = {name: urllib.parse.unquote(value) for name, equals, value in pairs if equals}
    return {name: None if value == _HIVE_NULL else value for name, value in values.items()}


class _CellError(DataError):
    """A cell of a CSV file is not of its column's type."""

    def __init__(self, message: str, column: str, cell: str):
        super().__init__(message)
        self.column = column
        self.cell = cell


def _wider_type(kind: pa.DataType, cell: str) -> pa.DataType:
    """The narrowest type after `kind`, of those that text is taken for, that holds a cell too."""
    narrow = [pa.null(), pa.int64(), pa.uint64(), pa.float64()]
    for wider in narrow[narrow.index(kind) + 1 :] if kind in narrow else ():
        if _holds(wider, cell) and not (kind == pa.uint64() and re.fullmatch(r"-\d+", cell)):
            return wider
    return pa.string()


def _holds(kind: pa.DataType, cell: str) -> bool:
    try:
        pa.array([cell]).cast(kind)
    except pa.ArrowException:
        return False
    return True


def _explained(error: Exception, file: str, names: list[str]) -> DataError:
    text = str(error)
    if found := _BAD_CELL.search(text):
        column = names[int(found[1])]
        message = f"{file}, line {found[2]}: '{column}' is {_first_line(found[3])}, which does not fit"
        return _CellError(message, column, found[3].strip("'"))
    if found := _BAD_ROW.search(text):
        return DataError(f"{file}, line {found[1]}: {_first_line(found[2])}; correct the line")
    return DataError(f"{file} cannot be read: {_first_line(error)}")


def _find(filesystem: fsspec.AbstractFileSystem, root: str, given: str) -> tuple[list[str], str]:
    """The files of a log as paths below it ("" for the log itself), and their format."""
    if not filesystem.exists(root):
        raise DataError(f"{given} does not exist; give a CSV or Parquet file, or a folder of them")
    if filesystem.isfile(root):
        sizes = {"": filesystem.size(root)}
    else:
        found = filesystem.find(root, detail=True)
        sizes = {file[len(root) :].strip("/"): found[file]["size"] for file in found}
        sizes = {name: sizes[name] for name in sorted(sizes, key=lambda name: name.split("/")) if not _is_hidden(name)}
    if not sizes:
        raise DataError(f"{given} holds no files; give a CSV or Parquet file, or a folder of them")
    kinds: dict[str, str] = {}
    for name in sizes:
        kind, shown = _format_of(name or root), f"{given.removesuffix('/')}/{name}" if name else given
        if kind is None:
            raise DataError(
                f"{shown} is neither CSV nor Parquet by its name; a log's files end in {', '.join(FORMATS)}"
            )
        kinds.setdefault(kind, shown)
    if len(kinds) > 1:
        raise DataError(
            f"{given} holds files of several formats, e.g. {' and '.join(kinds.values())}; give one of them"
        )
    with_rows = [name for name, size in sizes.items() if size]
    if not with_rows:
        raise DataError(f"{given} is empty; give a log with rows")
    return with_rows, next(iter(kinds))


def _is_hidden(name: str) -> bool:
    """What Spark, Hive and file systems leave beside the data: names that begin with a dot or an underscore."""
    return any(part[0] in "._" and "=" not in part for part in name.split("/"))


def _format_of(name: str) -> str | None:
    return next((FORMATS[end] for end in sorted(FORMATS, key=len) if name.lower().endswith(end)), None)


def _plain_batch(batch: pa.RecordBatch, schema: pa.Schema, folders: dict[str, str | None]) -> pa.RecordBatch:
    """The batch in the types of `schema`; a column that it lacks is what the folders say, or null."""
    columns = []
    for field in schema:
        place = batch.schema.get_field_index(field.name)
        if place >= 0:
            columns.append(cast(batch.column(place), field.type))
        else:
            constant = (
                pa.scalar(folders.get(field.name), pa.string()).cast(field.type) if field.name in folders else None
            )
            columns.append(pa.repeat(pa.scalar(constant, field.type), batch.num_rows))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _check_names(schema: pa.Schema, where: str) -> None:
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise DataError(f"{where} has {schema.names.count(name)} columns '{name}'; keep one, or rename them")


def _first_line(error: object) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
