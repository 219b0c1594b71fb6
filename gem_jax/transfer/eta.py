"""How much of what a teacher knows has reached a student, and how sure that is.

Two measures go by the name of a transfer ratio:
  eta = (NE_scratch - NE_student) / (NE_scratch - NE_teacher), the share that the student has after transfer of the
    teacher's lead over a student without one (Rec-Distill, arXiv 2605.29755, equation 1, there "transferability");
  TR = (NE(student | first teacher) - NE(student | second)) / (NE(first teacher) - NE(second)), what a teacher's step from one
    generation to the next is worth to the students that serve (LoopFM, 2605.29280).
Both are a difference of two NE over another, of models scored on the same examples, and so is one recipe's gain over another's.

Shape letters: n examples.
"""

import dataclasses

import numpy as np

from gem_jax.evaluation import influence
from gem_jax.evaluation.intervals import Z, is_estimable, standard_error
from gem_jax.evaluation.metrics import ne
from gem_jax.evaluation.paired import OF_EXAMPLE
from gem_jax.evaluation.scores import Scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ratio:
    """(NE(a) - NE(b)) / (NE(c) - NE(d)).

    Attributes:
      value: the ratio.
      standard_error: over the draw of the test examples, by user where users are known.
    """

    value: float
    standard_error: float


def eta(scratch: Scores, student: Scores, teacher: Scores) -> Ratio | None:
    """The share of the teacher's lead that has reached the student; None where the teacher has no clear lead."""
    return ratio((scratch, student), (scratch, teacher))


def transfer_ratio(students: tuple[Scores, Scores], teachers: tuple[Scores, Scores]) -> Ratio | None:
    """What the second teacher's lead over the first is worth to its student; None where it has no clear one."""
    return ratio(students, teachers)


def gain_over(scratch: Scores, student: Scores, other: Scores) -> Ratio | None:
    """The student's gain over scratch, in units of another student's; None where that one has not clearly gained."""
    return ratio((scratch, student), (scratch, other))


def ratio(above: tuple[Scores, Scores], below: tuple[Scores, Scores]) -> Ratio | None:
    """(NE of the first less NE of the second) of `above`, over that of `below`.

    The standard error is the delta method's: the influence of an example on a ratio r = a / b is (its influence on a, less r times
    that on b) / b.

    Args:
      above: scores of two models.
      below: of two models.

    Returns:
      None where an NE is undefined, or what stands below is not positive with 95 % confidence: the ratio could then be anything
      (Fieller 1954: its interval has no bounds).

    Raises:
      AssertionError: the four are not scores of the same examples.
    """
    four = [scores.select(np.argsort(scores.example_id, kind="stable")) for scores in (*above, *below)]
    for scores in four[1:]:
        assert all(np.array_equal(vars(four[0])[name], vars(scores)[name]) for name in OF_EXAMPLE)
    values, influences = [ne(scores.sums) for scores in four], [influence.ne(scores) for scores in four]
    found = [(v, i) for v, i in zip(values, influences, strict=True) if v is not None and i is not None]
    if len(found) < len(four) or not is_estimable(four[0]):
        return None
    (a, of_a), (b, of_b), (c, of_c), (d, of_d) = found
    if not c - d > Z * standard_error(of_c - of_d, four[0].cluster):
        return None
    value = (a - b) / (c - d)
    moved = ((of_a - of_b) - value * (of_c - of_d)) / (c - d)
    return Ratio(value=value, standard_error=standard_error(moved, four[0].cluster))
