"""What a preparation found, as tables to read."""

import pathlib

import rich.box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gem_jax.prepare.features import Feature, Features
from gem_jax.prepare.spec import PAST, Columns, Spec

_WIDTH = 120
"""Characters of a line where there is no terminal to ask."""


def show_features(features: Features, columns: Columns, console: Console) -> None:
    """Prints what every column becomes and why, and those that the user should look at."""
    if not console.is_terminal:
        console = Console(file=console.file, width=_WIDTH, quiet=console.quiet)
    told = [f"{', '.join(columns.label)}: label", f"{columns.time}: time", f"{columns.user}: user"]
    console.print("; ".join(told), markup=False, highlight=False)
    for source, entries in ((PAST, features.log), *features.events.items()):
        table = Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1))
        for name in ("column" if source == PAST else f"column of {source}", "becomes", "role", "why"):
            table.add_column(name, overflow="fold")
        for feature in entries:
            table.add_row(escape(feature.column), _becomes(feature), _role(feature), escape(feature.why))
        console.print(table)
    doubtful: dict[tuple[str, str], list[str]] = {}
    for feature in (f for entries in (features.log, *features.events.values()) for f in entries if f.look):
        doubtful.setdefault((feature.kind, feature.look), []).append(feature.column)
    if doubtful:
        console.print("Look at these:", markup=False, highlight=False)
    for (kind, look), names in doubtful.items():
        console.print(f"  {', '.join(names)}: {kind}; {look}", markup=False, highlight=False, soft_wrap=True)


def show_parts(
    folder: pathlib.Path, spec: Spec, counts: dict[str, int], left_out: dict[str, int], console: Console
) -> None:
    """Prints the parts, the vocabularies, rows without a user, and the commands that come next."""
    rows = ", ".join(f"{part} {count:,}" for part, count in counts.items())
    unit = f", times in {spec.clock.unit}" if spec.clock.family == "integer" else ""
    lines = [f"{sum(counts.values()):,} rows in order of time{unit}: {rows}"]
    lines.append("ids: " + ", ".join(f"{table} {count:,}" for table, count in spec.rows.items()))
    lines += [
        f"{count:,} rows of {name} have no user, and are in no history" for name, count in left_out.items() if count
    ]
    lines += [
        f"Change what a column becomes in {folder / 'features.json'}; prepare again with --schema {folder / 'features.json'}",
        f"Train with: python -m gem_jax.train configs/prepared.py data.path={folder}",
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _becomes(feature: Feature) -> str:
    if feature.kind == "categorical":
        return (
            "categorical"
            + (f" x {feature.max_ids}" if feature.max_ids > 1 else "")
            + (", event" if feature.event else "")
        )
    return {"dense": "dense, log" if feature.log else "dense", "vector": f"vector of {feature.dim}"}.get(
        feature.kind, "-"
    )


def _role(feature: Feature) -> str:
    return "" if feature.kind == "ignore" else feature.role
