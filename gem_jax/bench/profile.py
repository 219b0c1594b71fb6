"""Where a compiled step's time goes: a profiler's trace by `jax.named_scope`, and by kind of operation."""

import collections
import pathlib
import re
import warnings
from collections.abc import Callable

import jax

KINDS = (
    ("matmul", r"gemm|dot|matmul|cublas|ynn"),
    ("scatter", r"scatter"),
    ("kernel", r"custom|triton|mosaic|pallas|attention|gdpa"),
    ("reduction", r"reduce|sort|cumsum"),
    ("movement", r"gather|slice|copy|transpose|concatenate|pad"),
)
"""Kind -> what the names of its operations hold; the first that fits counts, and all else is elementwise."""

_WRAPPERS = re.compile(r"(?:jvp|transpose|vmap|remat|checkpoint)\((.*)\)")
_NO_SCOPES = {"", "shard_map", "checkpoint", "rematted_computation", "while", "body", "cond", "closed_call", "pjit"}
_CONTROL = re.compile(r"(while|call|conditional)\b")


def traced(run: Callable[[], object], folder: pathlib.Path) -> dict[str, float]:
    """Milliseconds by name of the compiled operation while `run()` runs under the profiler, whose trace goes to `folder`.

    Operations that contain others (loops, calls) are left out. Empty where the profiler says nothing of operations.
    """
    before = set(folder.rglob("*.xplane.pb"))
    jax.profiler.start_trace(str(folder))
    try:
        jax.block_until_ready(run())
    finally:
        jax.profiler.stop_trace()
    (file,) = set(folder.rglob("*.xplane.pb")) - before
    planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    planes = [p for p in planes if p.name.startswith("/device:")] or planes
    found: dict[str, float] = collections.defaultdict(float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of jaxlib's own event_stats
        for event in (event for plane in planes for line in plane.lines for event in line.events):
            name = dict(event.stats).get("hlo_op")
            if isinstance(name, str) and not _CONTROL.match(name):
                found[name] += event.duration_ns * 1e-6
    return dict(found)


def by_scope(times: dict[str, float], hlo: str) -> dict[str, float]:
    """The times by scope of the model, the longest first; `hlo` is the compiled program's text, which knows the scopes."""
    names = dict(re.findall(r'^\s*(?:ROOT )?%?([\w.-]+) = .*metadata=\{[^}]*op_name="([^"]*)"', hlo, re.MULTILINE))
    return _sums(times, lambda operation: scope(names.get(operation, "")))


def by_kind(times: dict[str, float], hlo: str = "") -> dict[str, float]:
    """The times by kind of operation, the longest first; `hlo` knows which custom calls are products."""
    products = set(re.findall(r'^\s*(?:ROOT )?%?([\w.-]+) = .*custom_call_target="__cu(?:blas|dnn)', hlo, re.MULTILINE))

    def kind(name: str) -> str:
        return (
            "matmul" if name in products else next((k for k, words in KINDS if re.search(words, name)), "elementwise")
        )

    return _sums(times, kind)


def scope(op_name: str) -> str:
    """'layer/sequence/gdpa' for 'jit(train_step)/transpose(jvp(layer1))/sequence/gdpa/mul': all layers and both passes together."""
    parts = []
    for part in op_name.split("/")[1:-1]:  # the first is the program, the last the operation
        while match := _WRAPPERS.fullmatch(part):
            part = match[1]
        if part in _NO_SCOPES:
            continue
        if not re.fullmatch(r"\w+", part):
            break
        parts.append(re.sub(r"^layer\d+$", "layer", part))
    return "/".join(parts) or "other"


def _sums(times: dict[str, float], group: Callable[[str], str]) -> dict[str, float]:
    found: dict[str, float] = collections.defaultdict(float)
    for name, milliseconds in times.items():
        found[group(name)] += milliseconds
    return dict(sorted(found.items(), key=lambda item: -item[1]))
