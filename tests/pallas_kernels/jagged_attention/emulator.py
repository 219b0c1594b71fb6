"""Runs the Hopper kernels on a CPU, statement by statement: three threads a program, as on the chip.

Pallas's GPU interpreter lacks what these kernels use (register operands of wgmma, reducing copies), so this stands in
for the parts of `plgpu`, `pl` and `lax` that they call, on concrete arrays. Where the chip runs ahead, this is as
unkind as the chip may be: a matmul reads its operands, and a copy out its source, only when it is waited for; a copy
in lands at once; barriers have parity only; shared memory starts as NaN. So a missing wait, a tile freed too early
or a barrier that is a phase off gives wrong numbers, an error or a deadlock (reported after `PATIENCE_S`).

What it cannot see: timing, registers, the fences between memory proxies, and the addresses in functions that are written
in the GPU's own instructions (`INLINE`), which have stand-ins here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
import time
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax as real_lax
from jax.experimental import pallas as real_pl
from jax.experimental.pallas import mosaic_gpu as real_plgpu

from pallas_kernels.common import dispatch
from pallas_kernels.hopper import matmul, memory, program
from pallas_kernels.jagged_attention import (
    backends,
    mosaic_backward,
    mosaic_dq,
    mosaic_forward,
    mosaic_gpu,
    mosaic_items,
    mosaic_pipe,
    mosaic_problem,
    mosaic_walk,
    mosaic_wide,
    tuning,
)

PATIENCE_S = 60.0
slow: int | None = None  # a thread that dawdles at each barrier, to bring out what another does too early
_here = threading.local()  # of the running thread: its number, axes, matmuls, copies, waits


class Ref:
    """A view of an array: per dimension a number or (start, size), which may run past the end (copies mind that)."""

    def __init__(self, base: np.ndarray, index=None, order=None):
        self.base = base
        self.index = tuple((0, n) for n in base.shape) if index is None else index
        self.order = order  # of the axes that are left

    @property
    def shape(self):
        sizes = [i[1] for i in self.index if isinstance(i, tuple)]
        return tuple(sizes if self.order is None else (sizes[axis] for axis in self.order))

    @property
    def dtype(self):
        return self.base.dtype

    @property
    def at(self):
        return _At(self)

    def transpose(self, order):
        return Ref(self.base, self.index, order)

    def _inside(self):
        """(index of the part inside the array, index of the same part inside the view)."""
        outer, inner = [], []
        for i, length in zip(self.index, self.base.shape, strict=True):
            if not isinstance(i, tuple):
                outer.append(i)
                continue
            start, size = i
            end = min(start + size, length)
            assert 0 <= start, f"view starts at {start}"
            outer.append(slice(start, max(start, end)))
            inner.append(slice(0, max(0, end - start)))
        return tuple(outer), tuple(inner)

    def read(self) -> np.ndarray:
        """A copy; 0 past the end, as the copy engine has it."""
        outer, inner = self._inside()
        values = np.zeros([i[1] for i in self.index if isinstance(i, tuple)], self.dtype)
        values[inner] = self.base[outer]
        return values if self.order is None else values.transpose(self.order)

    def write(self, values, add: bool = False):
        assert self.order is None
        outer, inner = self._inside()
        values = np.broadcast_to(np.asarray(values).astype(self.dtype), self.shape)[inner]
        self.base[outer] = self.base[outer] + values if add else values

    def __getitem__(self, index):
        return jnp.asarray(self.at[index].read())

    def __setitem__(self, index, values):
        self.at[index].write(values)


class _At:
    def __init__(self, ref):
        self.ref = ref

    def __getitem__(self, index):
        if index is Ellipsis:
            return self.ref
        index = list(index if isinstance(index, tuple) else (index,))
        assert self.ref.order is None
        new = []
        for i in self.ref.index:
            if not isinstance(i, tuple):
                new.append(i)
                continue
            own = index.pop(0) if index else slice(None)
            if isinstance(own, slice):
                assert own == slice(None)
                new.append(i)
            elif isinstance(own, real_pl.Slice):
                new.append((i[0] + int(own.start), int(own.size)))
            else:
                assert 0 <= int(own) < i[1], f"index {int(own)} of {i[1]}"
                new.append(i[0] + int(own))
        assert not index
        return Ref(self.ref.base, tuple(new))


class Accumulator:
    """A wgmma accumulator: readable once no matmul into it is under way."""

    def __init__(self, shape):
        self.values = np.zeros(shape, np.float32)

    @property
    def shape(self):
        return self.values.shape

    def __getitem__(self, index):
        assert index is Ellipsis
        wgmma_wait(0)
        return _read(self)

    def __setitem__(self, index, values):
        assert index is Ellipsis
        self.values = np.array(values, np.float32)


class Barrier:
    """An array of barriers with parities, as mbarriers have them."""

    def __init__(self, num_arrivals=1, num_barriers=1):
        self.needed, self.arrived, self.phases = num_arrivals, [0] * num_barriers, [0] * num_barriers
        self.changed = threading.Condition()

    @property
    def at(self):
        return _BarrierAt(self)

    def arrive(self, number):
        with self.changed:
            self.arrived[number] += 1
            if self.arrived[number] == self.needed:
                self.arrived[number] = 0
                self.phases[number] += 1
                self.changed.notify_all()

    def wait(self, number):
        if _here.thread == slow:
            time.sleep(3e-4)
        waits = _here.waits.get((self, number), 0)
        _here.waits[self, number] = waits + 1
        with self.changed:
            passed = self.changed.wait_for(lambda: self.phases[number] % 2 != waits % 2, PATIENCE_S)
            assert passed, f"deadlock: {_here.axes} waits for phase {waits} of barrier {number}"
            assert self.phases[number] == waits + 1, f"barrier {number} is phases ahead of who waits for it"


class _BarrierAt:
    def __init__(self, barrier):
        self.barrier = barrier

    def __getitem__(self, number):
        return self.barrier, int(number)


def _one(barrier):
    return barrier if isinstance(barrier, tuple) else (barrier, 0)


def barrier_wait(barrier):
    barrier, number = _one(barrier)
    barrier.wait(number)


def barrier_arrive(barrier):
    barrier, number = _one(barrier)
    barrier.arrive(number)


# matmuls: done when waited for ---------------------------------------------------------------------


def wgmma(acc, a, b):
    assert len(a.shape) == 2 and acc.shape == (a.shape[0], b.shape[1]) and a.shape[1] == b.shape[0]
    assert a.shape[0] == 64 and a.shape[1] % 64 == 0 or isinstance(a, Ref)
    _here.matmuls.append((acc, a if isinstance(a, Ref) else np.asarray(a), b))


def wgmma_wait(n):
    while len(_here.matmuls) > n:
        acc, a, b = _here.matmuls.pop(0)
        a, b = (np.asarray(x.read() if isinstance(x, Ref) else x).astype(np.float32) for x in (a, b))
        with np.errstate(invalid="ignore", over="ignore"):  # rows beyond a sequence may hold anything
            acc.values += a @ b


def _read(acc):
    assert all(other is not acc for other, _, _ in _here.matmuls), "an accumulator is read before its matmul is done"
    return jnp.asarray(acc.values.copy())


def issue(a, b, transpose_a=False, transpose_b=False):
    """`matmul.issue`: -> an accumulator, which nothing but `arrived` can read."""
    a, b = (x.transpose((1, 0)) if transpose else x for x, transpose in ((a, transpose_a), (b, transpose_b)))
    acc = Accumulator((a.shape[0], b.shape[1]))
    wgmma(acc, a, b)
    return acc


def arrived(product, wait_n):
    wgmma_wait(wait_n)
    return _read(product)


def stage(ref, values):
    """`memory.stage`: rows of a group of 8 in another order."""
    order = np.arange(values.shape[0]).reshape(-1, 2, 4).swapaxes(1, 2).reshape(-1)
    ref.write(np.asarray(values)[order])


def zero_rows_from(tile, first):
    """`memory.zero_rows_from`."""
    tile.at[real_pl.ds(int(max(first, 0)), tile.shape[0] - int(max(first, 0)))].write(0)


def zero_rows(ref):
    """`memory.zero_rows`."""
    ref.write(0)


# copies --------------------------------------------------------------------------------------------


def copy_gmem_to_smem(source, target, barrier):
    assert source.shape == target.shape, (source.shape, target.shape)
    if len(source.shape) == 2:
        assert source.index[0][0] % 8 == 0, "the copy engine needs starts at multiples of 8 rows"
    target.write(source.read())
    barrier_arrive(barrier)


def copy_smem_to_gmem(source, target, reduction_op=None):
    assert source.shape == target.shape, (source.shape, target.shape)
    _here.copies.append((source, target, reduction_op == "add"))


def wait_smem_to_gmem(n, wait_read_only=False):
    del wait_read_only
    while len(_here.copies) > n:
        source, target, add = _here.copies.pop(0)
        with _memory:
            target.write(source.read(), add)


_memory = threading.Lock()


def load(ref, layout=None):
    del layout
    return ref[...]


# control -------------------------------------------------------------------------------------------


def fori_loop(first, end, body, carry):
    for i in range(int(first), int(end)):
        carry = body(jnp.int32(i), carry)
    return carry


def while_loop(condition, body, carry):
    while bool(condition(carry)):
        carry = body(carry)
    return carry


def when(condition):
    return lambda action: action() if bool(condition) else None


def run_scoped(function, *specs):
    return function(*(spec.make() for spec in specs))


class Spec:
    """What a kernel asks for: made once a program, or once a scope."""

    def __init__(self, make):
        self.make = make


def _shared(shape, dtype, transforms=()):
    del transforms
    return Spec(lambda: Ref(np.full(shape, np.nan, jnp.dtype(dtype))))


def kernel(body, out_type, scratch_types, grid, grid_names, num_threads, thread_name, compiler_params):
    del compiler_params
    single = not isinstance(out_type, list)

    def call(*arguments):
        inputs = [Ref(np.array(x[...] if _is_ref(x) else x)) for x in arguments]
        outs = [Ref(np.full(x.shape, np.nan, x.dtype)) for x in ([out_type] if single else out_type)]
        for number in range(grid[0]):
            scratch = [spec.make() for spec in scratch_types]
            _run_threads(body, (*inputs, *outs, *scratch), {grid_names[0]: number}, thread_name, num_threads)
        for argument, ref in zip(arguments, inputs, strict=True):
            if _is_ref(argument):
                argument[...] = jnp.asarray(ref.base)
        results = [jnp.asarray(x.base) for x in outs]
        return results[0] if single else results

    return call


def _is_ref(x):
    return not isinstance(x, (jax.Array, np.ndarray))


def _run_threads(body, refs, axes, thread_name, num_threads):
    errors = []

    def run(number):
        _here.axes, _here.thread = axes | {thread_name: number}, number
        _here.matmuls, _here.copies, _here.waits = [], [], {}
        try:
            body(*refs)
            assert not _here.copies or wait_smem_to_gmem(0) is None
        except BaseException as error:  # told by the thread that waits for all
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


class _Shim(types.SimpleNamespace):
    """The given names, and a module's for the rest."""

    def __getattr__(self, name):
        return getattr(self.module, name)


def _iota(dtype, shape, dimension, layout=None):
    del layout
    return real_lax.broadcasted_iota(dtype, shape, dimension)


SHIMS: dict[str, Any] = dict(
    plgpu=_Shim(
        module=real_plgpu,
        kernel=kernel,
        SMEM=_shared,
        ACC=lambda shape, dtype: Spec(lambda: Accumulator(shape)),
        Barrier=lambda **how: Spec(lambda: Barrier(**how)),
        barrier_wait=barrier_wait,
        barrier_arrive=barrier_arrive,
        wgmma=wgmma,
        wgmma_wait=wgmma_wait,
        copy_gmem_to_smem=copy_gmem_to_smem,
        copy_smem_to_gmem=copy_smem_to_gmem,
        wait_smem_to_gmem=wait_smem_to_gmem,
        commit_smem=lambda: None,
        set_max_registers=lambda *how, **more: None,
        load=load,
        layout_cast=lambda x, layout: x,
        broadcasted_iota=_iota,
    ),
    pl=_Shim(module=real_pl, when=when, run_scoped=run_scoped, multiple_of=lambda x, n: x),
    lax=_Shim(
        module=real_lax,
        axis_index=lambda name: jnp.int32(_here.axes[name]),
        fori_loop=fori_loop,
        while_loop=while_loop,
        cond=lambda condition, yes, no: yes() if bool(condition) else no(),
        optimization_barrier=lambda x: x,
    ),
)
MODULES = (
    mosaic_items,
    mosaic_problem,
    matmul,
    program,
    mosaic_pipe,
    memory,
    mosaic_forward,
    mosaic_backward,
    mosaic_walk,
    mosaic_dq,
    mosaic_wide,
)
INLINE = (  # replaced by the functions of these names here
    (matmul, "issue"),
    (matmul, "arrived"),
    (memory, "stage"),
    (memory, "zero_rows"),
    (memory, "zero_rows_from"),
)
JITTED = (
    (mosaic_forward, "forward"),
    (mosaic_backward, "backward_kv"),
    (mosaic_dq, "backward_q"),
    (mosaic_wide, "backward_kv"),
)


def _run(programs, q, k, v, layout, problem, deterministic, work_list):
    """`mosaic_gpu._run` without a GPU."""
    tilings = tuning.tilings(tuning.TABLES.default, max(q.shape[-1], mosaic_gpu.HEAD_DIMS[0]))
    settings = mosaic_gpu.Settings(problem, deterministic, tilings, programs)
    return mosaic_gpu.attend(q, k, v, layout, settings, work_list)


@contextlib.contextmanager
def emulated(programs: int = 3):
    """Within it, `implementation="mosaic_gpu"` runs here, outside of jit, as on a GPU of `programs` multiprocessors."""
    here = tuple(dataclasses.replace(backend, supported_on=dispatch.anywhere) for backend in backends.BACKENDS)
    new: list[tuple[Any, str, Any]] = [(backends, "BACKENDS", here)]
    new += [(mosaic_gpu, "_run", functools.partial(_run, programs))]
    new += [(module, name, SHIMS[name]) for module in MODULES for name in SHIMS if hasattr(module, name)]
    new += [(module, name, globals()[name]) for module, name in INLINE]
    new += [(module, name, getattr(module, name).__wrapped__) for module, name in JITTED]
    saved = [(module, name, getattr(module, name)) for module, name, _ in new]
    try:
        for module, name, value in new:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in saved:
            setattr(module, name, value)
