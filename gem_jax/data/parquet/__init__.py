"""Any schema as Parquet files: read by row group with a small cache, so a data set may be larger than memory.

Columns of a file, by the names in the schema:

| column | type | meaning |
|---|---|---|
| `<categorical>` | integer | id in its table; null or -1 = absent |
| `<categorical>` with max_ids > 1 | list of integers | at most max_ids ids |
| `<dense>` | number | finite, of order one: above 1e4 it is warned of, above 1e18 refused |
| `<vector>` | list of numbers | exactly dim finite numbers, sized as a dense one |
| `<sequence>.<attribute>` | list of integers | one id an event, oldest first; -1 = absent |
| `<sequence>.age_s` | list of integers | seconds from the event to the example, 0 to 30 years, never growing along the list |
| `<sequence>` | list of structs | the same in one column: a field for each attribute, and `age_s` |
| `label.<task>` | number | 0 to 1, or null = unobserved; optional when only scoring |
| `domain` | string or integer | name in `schema.domains` or place among them; optional where there is only one |
| `user` | integer | the user's id, for grouped metrics; null or -1 = unknown; optional |
| `example_id` | integer | 0 or more, unique in all files of all parts; optional |
| `time_s` | integer | seconds, 0 or more, null = unknown; optional |
| `weight` | number | 0 to 1e9; optional, 1 if absent |
| `true_probability.<task>` | number | 0 to 1, where the truth is known (synthetic data), else null; optional |
| `training.<name>` | number, or list of dim numbers | NaN or null = unknown; optional when only scoring |

A number is of any integer, float or decimal type or a bool, and is rounded to float32. An integer may be stored as any of these too
(pandas makes floats of integers with nulls) if it is whole and exact in its type; NaN is null there. Integers of 2^63 and more are
refused, but as `user`, where a hash of 64 bits becomes the int64 of the same bits. A list has any Arrow layout. A column of nulls
alone needs no type. Strings as ids are numbered by `python -m gem_jax.prepare`.

A part is a file or a folder, local or a URL that fsspec knows (`s3://` needs s3fs, and so on); `parquet.files` says which files of
a folder count. A folder named `column=value` gives all rows below it the column. An optional column is in all files of a part or in
none. Other columns are ignored, unless one seems to be a slip of an optional column that is missing ("Weight").

A categorical feature `user` of the schema is the user's id: the one column is both. Where there is no `example_id`, an example's id
is its row in its part, the part folded in (`source.numbered`). Row groups of 1,000 to 100,000 rows suit the cache. Pages'
checksums are verified where the writer made them, as `write_parquet` does.

A value that breaks a rule ends the reading with a `DataError` that names file, row and field, or makes its row an empty example
(`ParquetConfig.on_bad_row`).
"""

from gem_jax.data.parquet.config import ParquetConfig
from gem_jax.data.parquet.source import ParquetSource
from gem_jax.data.parquet.write import write_parquet

__all__ = ["ParquetConfig", "ParquetSource", "write_parquet"]
