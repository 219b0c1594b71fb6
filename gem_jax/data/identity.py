"""Which data it is: digests that depend on content alone, never on paths, times of change or machines."""

import dataclasses
import hashlib
import json
import os
from typing import Any

import numpy as np

BLOCKS = 64
BLOCK_BYTES = 2**14
"""What is read of a large file: this many blocks of this size, evenly spread, of its ends and all between."""


def digest(*values: Any) -> str:
    """Hex digest of values: arrays, dataclasses, dicts (whatever their order), and what JSON holds.

    Arrays count with dtype and shape, in little-endian order, so two that print alike but differ in kind do not agree.
    """
    found = hashlib.blake2b(digest_size=16)
    for value in values:
        _add(found, value)
    return found.hexdigest()


def _add(found: Any, value: Any) -> None:
    if isinstance(value, np.ndarray):
        assert value.dtype.kind in "biuf", value.dtype
        little = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
        found.update(f"array {little.dtype.str} {little.shape};".encode())
        found.update(little.reshape(-1).view(np.uint8).data)
    elif dataclasses.is_dataclass(value):
        _add(found, {field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    elif isinstance(value, dict):
        found.update(f"dict {len(value)};".encode())
        for name in sorted(value):
            found.update(f"{json.dumps(name)}:".encode())
            _add(found, value[name])
    else:
        found.update(json.dumps(value).encode() + b";")


def file_digest(opened: Any, footer_bytes: int) -> str:
    """Hex digest of a file's size, its last `footer_bytes`, and blocks spread over it: all of it up to 1 MiB.

    A Parquet footer has the size, the row count and, where the writer made them, the smallest and largest value of every column
    chunk, so new content has a new digest, but for a change within a large file that alters none of those and lies between blocks.

    Args:
      opened: the file, opened to read bytes: Python's or Arrow's.
      footer_bytes: its last bytes that count whole.

    Raises:
      OSError: the file cannot be read.
    """
    found = hashlib.blake2b(digest_size=16)
    opened.seek(0, os.SEEK_END)
    size = opened.tell()
    found.update(f"{size};".encode())
    if size <= BLOCKS * BLOCK_BYTES:
        starts, length = [0], size
    else:
        starts, length = [k * (size - BLOCK_BYTES) // (BLOCKS - 1) for k in range(BLOCKS)], BLOCK_BYTES
        opened.seek(max(size - footer_bytes, 0))
        found.update(opened.read())
    for start in starts:
        opened.seek(start)
        found.update(opened.read(length))
    return found.hexdigest()
