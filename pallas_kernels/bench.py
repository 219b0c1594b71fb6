"""python -m pallas_kernels.bench OPERATION [--json FILE]: time an operation's kernels on this machine's GPU.

An operation is a folder of `pallas_kernels` with `bench.py` (rows, line, table) and, where its kernels have tile sizes, `tune.py`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pathlib

from pallas_kernels.common import files, shapes


def operations() -> list[str]:
    """Names of the folders that have a benchmark."""
    return sorted(path.parent.name for path in pathlib.Path(__file__).parent.glob("*/bench.py"))


def main(arguments: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    options = _parser().parse_args(arguments)
    folder = f"pallas_kernels.{options.operation}"
    if options.tune is not None:
        importlib.import_module(f"{folder}.tune").tune(options.tune)
        return
    bench = importlib.import_module(f"{folder}.bench")
    if options.table:
        print(bench.table(json.loads(options.table.read_text())))
        return
    rows = []
    for row in bench.rows(commit=options.commit, shapes=options.shapes):
        rows.append(row)
        print(bench.line(row), flush=True)
        if options.json:  # written as they come: a broken run keeps what it measured
            files.write_rows(options.json, rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pallas_kernels.bench", description=__doc__)
    parser.add_argument("operation", choices=operations())
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows to this file")
    parser.add_argument(
        "--shapes", type=shapes.find, help=f"measure a model's sizes: one of {', '.join(shapes.NAMED)}, or a JSON file"
    )
    parser.add_argument(
        "--tune", type=int, nargs="*", metavar="SIZE", help="search tile sizes (of these head dims; none: of all) "
        "and write the tuning file of this GPU"
    )  # fmt: skip
    parser.add_argument("--table", type=pathlib.Path, help="print this results file as Markdown; measures nothing")
    parser.add_argument("--commit", default="", help="recorded in every row")
    return parser


if __name__ == "__main__":
    main()
