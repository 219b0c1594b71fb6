"""A run's result in sentences, where the truth is known: what was learnt, what is left, what nobody could learn, and where.

For the reader of report.html who does not know the metrics; made from summary.json like the rest of the page.
"""

from collections.abc import Sequence
from typing import Any

from gem_jax.evaluation.metrics import Measures

NEAR = 0.05
"""A domain whose predictions are right on average within this share is called calibrated."""


def story(summary: dict[str, Any]) -> dict[str, list[str]]:
    """Task -> its sentences; only tasks whose true probabilities are known have any.

    Args:
      summary: contents of summary.json.
    """
    oracle, examples = summary.get("oracle_ne", {}), summary.get("examples")
    told = {task: _told(m, oracle.get(task), examples) for task, m in summary.get("eval", {}).items()}
    return {task: sentences for task, sentences in told.items() if sentences}


def _told(m: Measures, oracle: float | None, examples: int | None) -> list[str]:
    learnt = _learnt(m)
    if learnt is None:
        return []
    return [
        f"Learnt: {learnt:.0%} of what features and histories can tell. Knowing only the base rate is an NE of 1, knowing the true "
        f"laws and what users did before is {m['bayes_ne']:.3f} (Bayes), and the model is at {m['ne']:.3f}.",
        f"Left: the other {1 - learnt:.0%}. More examples{_so_far(examples)}, longer histories or a larger model can learn it.",
        *_hidden(m["bayes_ne"], oracle),
        *_by_domain(m["by_domain"]),
        *_calibrated(m),
    ]


def _learnt(m: Measures) -> float | None:
    """Share closed by regret, which is free of the luck of the labels; in a small domain that is larger than the share."""
    regret, bayes = m.get("regret_ne"), m.get("bayes_ne")
    return None if regret is None or bayes is None or bayes >= 1 else 1 - regret / (1 - bayes)


def _so_far(examples: int | None) -> str:
    return "" if examples is None else f" than {examples:,}"


def _hidden(bayes: float, oracle: float | None) -> list[str]:
    if oracle is None or oracle >= bayes:
        return []
    share = (bayes - oracle) / (1 - oracle)
    return [
        f"Hidden from every model: one who also knew what each user is after would be at {oracle:.3f}; {share:.0%} of what decides "
        "is in no feature and no history, and the Bayes NE leaves it out already."
    ]


def _by_domain(by_domain: dict[str, Measures]) -> list[str]:
    learnt = {domain: share for domain, m in by_domain.items() if (share := _learnt(m)) is not None}
    if len(learnt) < 2:
        return []
    ascending = sorted(learnt, key=learnt.__getitem__)
    return [f"By domain, the one furthest behind first: {_listed([f'{d} {learnt[d]:.0%}' for d in ascending])}."]


def _calibrated(m: Measures) -> list[str]:
    """By the true probabilities, else a domain with a few dozen positives would seem off by chance."""
    ratio = m.get("true_calibration")
    if ratio is None:
        return []
    known = {d: x for d, v in m["by_domain"].items() if (x := v.get("true_calibration")) is not None}
    text = f"Calibration: predictions add up to {ratio:.2f} of the true probabilities"
    off = {d: x for d, x in known.items() if abs(x - 1) > NEAR}
    if len(known) < 2:
        return [f"{text}."]
    if not off:
        return [f"{text}, and to within {NEAR:.0%} of them in every domain."]
    said = _listed(
        [f"{d} {x:.2f} ({m['by_domain'][d]['num_positives']:,} positives in the test)" for d, x in off.items()]
    )
    return [f"{text}; off by more than {NEAR:.0%}: {said}. Domains with few positives are estimated from few."]


def _listed(parts: Sequence[str]) -> str:
    return ", ".join(parts)
