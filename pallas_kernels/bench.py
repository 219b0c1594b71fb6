"""python -m pallas_kernels.bench OPERATION [--json FILE]: time an operation's kernels on this machine's GPU."""

from __future__ import annotations

import argparse
import importlib
import json
import pathlib

OPERATIONS = ("jagged_attention",)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("operation", choices=OPERATIONS)
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows to this file")
    parser.add_argument(
        "--tune", type=int, nargs="*", metavar="SIZE", help="search tile sizes (of these head sizes; none: of all) "
        "and write the tuning file of this GPU"
    )  # fmt: skip
    parser.add_argument("--table", type=pathlib.Path, help="print this results file as Markdown; measures nothing")
    parser.add_argument("--commit", default="", help="recorded in every row")
    options = parser.parse_args()
    module = importlib.import_module(f"pallas_kernels.{options.operation}.bench")
    if options.table:
        print(module.table(json.loads(options.table.read_text())))
        return
    if options.tune is not None:
        module.tune(options.tune)
        return
    rows = []
    for row in module.rows(commit=options.commit):
        rows.append(row)
        print(module.line(row), flush=True)
        if options.json:  # written as they come: a broken run keeps what it measured
            options.json.write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")


if __name__ == "__main__":
    main()
