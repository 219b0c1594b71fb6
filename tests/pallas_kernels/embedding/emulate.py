"""The contract of the Triton backend in Triton's interpreter, with small tiles so that runs span many of them."""

from __future__ import annotations

from tests.pallas_kernels.embedding import triton_emulator  # before anything imports Triton

import functools  # isort: skip

from pallas_kernels.common import dispatch  # isort: skip
from pallas_kernels.embedding import triton
from tests.pallas_kernels.embedding import cases
from tests.pallas_kernels.embedding.cases import CASES, RULES, Case

if __name__ == "__main__":
    triton_emulator.emulate()
    dispatch.compute_capability = lambda device: (9, 0)
    dispatch.package_missing = lambda *names: None
    whole = triton.update
    for launch in (triton.Launch(tile=8, group=4), triton.Launch()):
        triton.update = functools.partial(whole, launch=launch)
        for case in CASES:
            cases.check_update(case, "triton")
    triton.update = functools.partial(whole, launch=triton.Launch(tile=8, group=4))
    for rule in RULES:
        cases.check_any_order(Case(rule, spread=6.0), "triton")
    cases.check_lookup("triton")
