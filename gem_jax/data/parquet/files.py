"""Which files a path means, on any file system that fsspec knows, and reading them so that every failure names the file.

A folder is read as Spark, Hive and pandas leave it: folders named `column=value` give a column to the files below them, a folder
`x.parquet/` counts as a file, and names that begin with `.` or `_` (`_SUCCESS`, checksums) are passed over. Other files are data.
"""

import contextlib
import dataclasses
import os
import pathlib
import urllib.parse
from collections.abc import Iterator

import fsspec
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
from fsspec.implementations.local import LocalFileSystem

from gem_jax.data.source import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataFile:
    """A Parquet file.

    Attributes:
      name: as the user wrote it, for messages.
      path: in its file system.
      filesystem: Arrow's view of the file system.
      partitions: column -> value, from the folders `column=value` that the file lies in.
    """

    name: str
    path: str
    filesystem: pyarrow.fs.FileSystem
    partitions: dict[str, str]

    @contextlib.contextmanager
    def open(self) -> Iterator[pa.NativeFile]:
        """The file's bytes.

        Raises:
          DataError: they cannot be read.
        """
        with named(f"{self.name} cannot be read", "see that it is there and may be read"):
            opened = self.filesystem.open_input_file(self.path)
        with opened:
            yield opened

    def parse(self, opened: pa.NativeFile) -> pyarrow.parquet.ParquetFile:
        """The opened file as Parquet; page checksums are verified wherever the writer made them.

        Raises:
          DataError: it is not a Parquet file, or a damaged one.
        """
        with named(f"{self.name} is not a Parquet file", "write it again, or move what is no data out of the folder"):
            parsed = pyarrow.parquet.ParquetFile(opened, page_checksum_verification=True)
            parsed.schema_arrow  # noqa: B018  a damaged one fails here
            return parsed


def find_files(path: str | pathlib.Path) -> tuple[DataFile, ...]:
    """The files of a path or URL: the file itself, or all data files of a folder in the order of their names.

    Raises:
      DataError: nothing is there, the file system cannot be used, the folder holds no files, or a folder in it that is neither
        `column=value` nor named like a Parquet file.
    """
    given = os.fspath(path)
    with named(f"{given} cannot be read", "see that the path is right and its file system installed"):
        filesystem, root = fsspec.core.url_to_fs(given)
        if not filesystem.exists(root):
            raise DataError(f"{given} does not exist; give a Parquet file, or a folder of them")
        files = [root] if filesystem.isfile(root) else filesystem.find(root)
    found = [_data_file(file, root, given, filesystem) for file in sorted(files, key=lambda file: file.split("/"))]
    kept = tuple(file for file in found if file is not None)
    if not kept:
        raise DataError(f"{given} holds no Parquet files; give a file, or a folder of them")
    return kept


def exists(path: str) -> bool:
    """Whether a path or URL names a file or a folder.

    Raises:
      DataError: its file system cannot be used.
    """
    with named(f"{path} cannot be read", "see that the path is right and its file system installed"):
        filesystem, root = fsspec.core.url_to_fs(path)
        return filesystem.exists(root)


def names_in(folder: str) -> list[str]:
    """Names of what a folder holds.

    Raises:
      DataError: it cannot be read.
    """
    with named(f"{folder} cannot be read", "see that it is a folder and may be read"):
        filesystem, root = fsspec.core.url_to_fs(folder)
        return [found.rstrip("/").split("/")[-1] for found in filesystem.ls(root, detail=False)]


@contextlib.contextmanager
def named(failure: str, advice: str) -> Iterator[None]:
    """Makes one sentence of whatever the libraries below raise over a user's file: they raise anything, and none names the file.

    Raises:
      DataError: something was raised.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DataError(f"{failure}: {reason}; {advice}") from error


def _data_file(file: str, root: str, given: str, filesystem: fsspec.AbstractFileSystem) -> DataFile | None:
    """One of the files below the root; None for one that is passed over."""
    inner = file[len(root) :].strip("/")
    *folders, last = inner.split("/")
    if any(_hidden(part) for part in (*folders, last)):
        return None
    for folder in folders:
        if "=" not in folder and not folder.endswith(".parquet"):
            raise DataError(
                f"{given} has a folder '{folder}', which is neither 'column=value' nor '<name>.parquet'; move its files up or away"
            )
    return DataFile(
        name=f"{given.removesuffix('/')}/{inner}" if inner else given,
        path=file,
        filesystem=arrow_filesystem(filesystem),
        partitions=dict(_partition(folder) for folder in folders if "=" in folder),
    )


def _hidden(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _partition(folder: str) -> tuple[str, str]:
    """Column and value of a folder, which are percent-encoded where they must be."""
    name, _, value = folder.partition("=")
    return urllib.parse.unquote(name), urllib.parse.unquote(value)


def arrow_filesystem(filesystem: fsspec.AbstractFileSystem) -> pyarrow.fs.FileSystem:
    """Arrow's own local file system is several times faster than one through Python."""
    if isinstance(filesystem, LocalFileSystem):
        return pyarrow.fs.LocalFileSystem()
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem))
