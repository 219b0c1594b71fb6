"""Rows of a transfer as one table: means over seeds, with what chance of examples and seeds leaves open."""

import statistics
from typing import Any

from gem_jax.evaluation.paired import margin_over_seeds

NOTE = """gain: NE from scratch less the student's; eta: gain over the teacher's; over kd: gain over plain distillation's;
TR: the gain from a stale to the fresh teacher, over these teachers'.
± reaches 95 %, for the draw of test examples and of seeds together. A ratio is left out where what stands below it is no clear
gain in one of the seeds."""

RATIOS = {"eta": "eta", "gain_over_kd": "over kd", "transfer_ratio": "TR"}


def markdown(rows: list[dict[str, Any]]) -> str:
    """A line for each student, task, domain and recipe, in the order of the rows."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in ("student", "task", "domain", "recipe")), []).append(row)
    lines = [
        {**dict(zip(("student", "task", "domain", "recipe"), key, strict=True)), **_cells(g)}
        for key, g in groups.items()
    ]
    lines.sort(key=lambda line: (line["student"], line["task"], line["domain"] != "all", line["domain"]))
    headings = list(lines[0])
    table = [headings, ["---"] * len(headings), *([line[h] for h in headings] for line in lines)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in table) + f"\n\n{NOTE}"


def _cells(rows: list[dict[str, Any]]) -> dict[str, str]:
    known = [row["ne"] for row in rows if row["ne"] is not None]
    gains = [row["gain"] for row in rows if row["gain"] is not None]
    is_scratch = rows[0]["recipe"] == "scratch"
    return {
        "NE": f"{statistics.fmean(known):.4f}" if known else "",
        "teacher's": _mean(rows, "ne_teacher"),
        "gain": "" if is_scratch else _with_margin(rows, "gain", "+.4f"),
        "least gain": f"{min(gains):+.4f}" if gains and not is_scratch else "",
        **{heading: "" if is_scratch else _with_margin(rows, name, ".2f") for name, heading in RATIOS.items()},
        "seeds": str(len(rows)),
    }


def _mean(rows: list[dict[str, Any]], name: str) -> str:
    known = [row[name] for row in rows if row[name] is not None]
    return f"{statistics.fmean(known):.4f}" if known else ""


def _with_margin(rows: list[dict[str, Any]], name: str, form: str) -> str:
    values = [row[name] for row in rows if row[name] is not None]
    if len(values) < len(rows):
        return ""
    margin = margin_over_seeds(values, [row[f"{name}_se"] for row in rows])
    return f"{statistics.fmean(values):{form}} ±{margin:{form.replace('+', '')}}"
