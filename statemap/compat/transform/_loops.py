"""Loops and branches. Each traces its functions once, and threads the cells that they write."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._frames import in_turn, read, write_all
from .._lift import capture, check_carry, Program, read_all
from ._progress import ProgressBar, with_progress


def scan(
    f: Callable,
    init: Any,
    xs: Any,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
    pbar: ProgressBar | int | None = None,
) -> tuple[Any, Any]:
    """`jax.lax.scan` of a function that uses cells.

    ```python
    import jax.numpy as jnp
    from statemap.compat import ShortTermState, transform

    total = ShortTermState(jnp.zeros(()))

    def step(carry, x):
        total.value = total.value + x
        return carry, total.value

    _, sums = transform.scan(step, None, jnp.arange(4.0))
    assert sums.tolist() == [0.0, 1.0, 3.0, 6.0] and total.value == 6
    ```

    **Arguments:**

    - `f`: `f(carry, x) -> (carry, y)`.
    - `init`, `xs`, `length`, `reverse`, `unroll`: as for `jax.lax.scan`.
    - `pbar`: a [`statemap.compat.transform.ProgressBar`][], or how often one is updated.

    **Returns:**

    `(carry, ys)`.

    **Raises:**

    `TypeError` if a cell is given a value of another shape or dtype.
    """
    return _scan(f, init, xs, length, pbar, "scan", reverse=reverse, unroll=unroll)


def checkpointed_scan(
    f: Callable,
    init: Any,
    xs: Any,
    length: int | None = None,
    base: int = 16,
    pbar: ProgressBar | int | None = None,
) -> tuple[Any, Any]:
    """[`statemap.compat.transform.scan`][] whose gradient keeps few intermediate values and
    computes the others again.

    **Arguments:**

    - `base`: how many steps or blocks of steps one block has. What is kept for a gradient grows
        with `base` times the logarithm of the length.
    - The others are those of `scan`.
    """
    if isinstance(base, bool) or not isinstance(base, int) or base < 2:
        raise ValueError(f"`base` is an integer of at least 2, not {base!r}.")
    return _scan(f, init, xs, length, pbar, "checkpointed_scan", base=base)


def for_loop(
    f: Callable,
    *xs: Any,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
    pbar: ProgressBar | int | None = None,
) -> Any:
    """Calls `f` with each of the rows of `xs` in turn, and stacks what it returns.

    **Arguments:**

    - `f`: `f(*rows) -> y`.
    - `xs`: arrays, or pytrees of arrays, of the same length.
    - The others are those of [`statemap.compat.transform.scan`][].
    """
    step = _Step(f)
    return _scan(step, None, xs, length, pbar, "for_loop", reverse=reverse, unroll=unroll)[1]


def checkpointed_for_loop(
    f: Callable,
    *xs: Any,
    length: int | None = None,
    base: int = 16,
    pbar: ProgressBar | int | None = None,
) -> Any:
    """[`statemap.compat.transform.for_loop`][] by means of
    [`statemap.compat.transform.checkpointed_scan`][].
    """
    return checkpointed_scan(_Step(f), None, xs, length, base, pbar)[1]


class _Step:
    def __init__(self, f: Callable):
        self.__wrapped__ = f

    def __call__(self, carry: Any, xs: tuple) -> tuple[Any, Any]:
        return carry, self.__wrapped__(*xs)


@in_turn
def _scan(
    f: Callable, init: Any, xs: Any, length: int | None, pbar: Any, name: str, **options: Any
) -> tuple[Any, Any]:
    if not callable(f):
        raise TypeError(f"`{name}` takes a function, and {f!r} can't be called.")
    sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(xs)} | ({(length,)} if length else set())
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(
            f"`{name}` needs one length: the arrays have the shapes "
            f"{[jnp.shape(x) for x in jax.tree.leaves(xs)]}, and `length` is {length}."
        )
    ((steps,),) = sizes
    row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[1:], jnp.result_type(x)), xs)
    program = capture(f, (init, row))
    outs = program.out_shape[0]
    if not isinstance(outs, tuple) or len(outs) != 2:
        raise TypeError(f"The function of `{name}` returns `(carry, y)`, not {outs}.")
    before = _initial(program)
    check_carry(program.written, before, program.out_shape[1], name)
    constants = {c: read(c) for c in program.cells if c not in program.written}

    def body(carry: Any, x: Any) -> Any:
        held, own = carry
        now = {**constants, **dict(zip(program.written, held))}
        (own, y), new = program([now[c] for c in program.cells], (own, x), {})
        return (_like(new, held), own), y

    body = body if pbar is None else with_progress(body, pbar, steps)
    base = options.pop("base", None)
    if base is None:
        (after, carry), ys = jax.lax.scan(body, (before, init), xs, length=steps, **options)
    else:
        (after, carry), ys = _checkpointed(body, (before, init), xs, steps, base)
    write_all(program.written, after)
    return carry, ys


def _checkpointed(body: Callable, carry: Any, xs: Any, length: int, base: int) -> tuple[Any, Any]:
    """A scan in blocks of blocks, each of which keeps only what goes into it."""
    if length <= base:
        return jax.lax.scan(body, carry, xs, length=length)
    block = base
    while block * base < length:
        block *= base
    n = length // block

    @jax.checkpoint
    def run(carry: Any, xs: Any) -> tuple[Any, Any]:
        return _checkpointed(body, carry, xs, block, base)

    whole = jax.tree.map(lambda x: x[: n * block].reshape(n, block, *x.shape[1:]), xs)
    carry, ys = jax.lax.scan(run, carry, whole, length=n)
    ys = jax.tree.map(lambda y: y.reshape(n * block, *y.shape[2:]), ys)
    if length > n * block:
        rest = jax.tree.map(lambda x: x[n * block :], xs)
        carry, more = _checkpointed(body, carry, rest, length - n * block, base)
        ys = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, more)
    return carry, ys


def while_loop(cond_fun: Callable, body_fun: Callable, init_val: Any) -> Any:
    """`jax.lax.while_loop` of functions that use cells.

    **Arguments:**

    - `cond_fun`: whether to go on, from the carried value. It may only read cells.
    - `body_fun`: from the carried value to the next one.
    - `init_val`: the first carried value.

    **Returns:**

    The last carried value.

    **Raises:**

    `ValueError` if `cond_fun` writes to a cell, `TypeError` if a cell changes shape or dtype.
    """
    return _while(cond_fun, body_fun, init_val, jax.lax.while_loop)


def bounded_while_loop(
    cond_fun: Callable, body_fun: Callable, init_val: Any, *, max_steps: int, base: int = 16
) -> Any:
    """[`statemap.compat.transform.while_loop`][] of at most `max_steps` steps, which can be
    differentiated in reverse.

    **Arguments:**

    - `base`: as for [`statemap.compat.transform.checkpointed_scan`][].
    """
    if not isinstance(max_steps, int) or max_steps < 0:
        raise ValueError(f"`max_steps` is a number of steps, not {max_steps!r}.")
    if isinstance(base, bool) or not isinstance(base, int) or base < 2:
        raise ValueError(f"`base` is an integer of at least 2, not {base!r}.")

    def loop(cond: Callable, body: Callable, init: Any) -> Any:
        def step(val: Any, _: Any) -> tuple[Any, None]:
            return jax.lax.cond(cond(val), body, lambda val: val, val), None

        return _checkpointed(step, init, None, max_steps, base)[0] if max_steps else init

    init_val = jax.tree.map(jnp.asarray, init_val)
    return _while(cond_fun, body_fun, init_val, loop)


@in_turn
def _while(cond_fun: Callable, body_fun: Callable, init_val: Any, loop: Callable) -> Any:
    if not (callable(cond_fun) and callable(body_fun)):
        raise TypeError("`while_loop` takes two functions, `cond_fun` and `body_fun`.")
    cond, body = capture(cond_fun, (init_val,)), capture(body_fun, (init_val,))
    if cond.written:
        raise ValueError(
            f"`cond_fun` writes to a {cond.written[0].label}. It may only read; write in "
            "`body_fun`."
        )
    before = _initial(body)
    check_carry(body.written, before, body.out_shape[1], "while_loop")
    used = dict.fromkeys([*cond.cells, *body.cells])
    constants = {c: read(c) for c in used if c not in body.written}

    def call(program: Program, carry: Any) -> tuple[Any, list[Any]]:
        now = {**constants, **dict(zip(body.written, carry[0]))}
        return program([now[c] for c in program.cells], (carry[1],), {})

    def step(carry: Any) -> Any:
        out, new = call(body, carry)
        return _like(new, carry[0]), out

    after, out = loop(lambda carry: call(cond, carry)[0], step, (before, init_val))
    write_all(body.written, after)
    return out


def cond(pred: Any, true_fun: Callable, false_fun: Callable, *operands: Any) -> Any:
    """`jax.lax.cond` of functions that use cells. A cell that only one of them writes stays as it
    is with the other.

    **Arguments:**

    - `pred`: a single bool, or a number that counts as true unless it is 0.
    - `true_fun`, `false_fun`: functions of the operands, of which one runs.
    - `operands`: their arguments.

    **Returns:**

    What the function returns that ran.

    **Raises:**

    `TypeError` if `pred` is no such thing, or the functions write values of another shape.
    """
    if not (callable(true_fun) and callable(false_fun)):
        raise TypeError("`cond` takes two functions, `true_fun` and `false_fun`.")
    if pred is None or isinstance(pred, (list, tuple)) or np.ndim(pred) != 0:
        raise TypeError(f"The predicate of `cond` is a single bool or number, not {pred!r}.")
    if np.dtype(jnp.result_type(pred)).kind not in "biuf":
        raise TypeError(f"The predicate of `cond` is a bool or a number, not {pred!r}.")
    index = jnp.asarray(pred).astype(bool).astype(int)
    return _branch(index, (false_fun, true_fun), operands, "cond")


def switch(index: Any, branches: Sequence[Callable[..., Any]], *operands: Any) -> Any:
    """`jax.lax.switch` of functions that use cells.

    **Arguments:**

    - `index`: which of the branches runs; beyond the ends, the nearest.
    - `branches`: functions of the operands.
    - `operands`: their arguments.

    **Returns:**

    What the branch returns that ran.
    """
    branches = tuple(branches)
    if not all(callable(branch) for branch in branches):
        raise TypeError("`switch` takes a sequence of functions.")
    if not branches:
        raise ValueError("`switch` needs a branch to choose.")
    if np.ndim(index) != 0 or np.dtype(jnp.result_type(index)).kind not in "iu":
        raise TypeError(f"The index of `switch` is a single integer, not {index!r}.")
    if len(branches) == 1:
        return branches[0](*operands)
    return _branch(index, branches, operands, "switch")


def ifelse(
    conditions: Sequence[Any],
    branches: Sequence[Callable[..., Any]],
    *operands: Any,
    check_cond: bool = True,
) -> Any:
    """Runs the branch whose condition is true.

    **Arguments:**

    - `conditions`: as many bools as there are branches, of which one is true.
    - `branches`: functions of the operands.
    - `check_cond`: whether to check, when the program runs, that exactly one is.

    **Raises:**

    `RuntimeError` if not exactly one condition is true.
    """
    branches = tuple(branches)
    if not all(callable(branch) for branch in branches):
        raise TypeError("`ifelse` takes a sequence of functions.")
    if not branches or len(conditions) != len(branches):
        raise ValueError(
            f"`ifelse` needs a condition for each branch: there are {len(conditions)} conditions "
            f"and {len(branches)} branches."
        )
    if len(branches) == 1:
        return branches[0](*operands)
    true = jnp.asarray(conditions).astype(bool)
    if check_cond:
        true = eqx.error_if(true, true.sum() != 1, "Exactly one condition of `ifelse` is true.")
    index = jnp.where(true.any(), jnp.argmax(true), len(branches) - 1)
    return switch(index, branches, *operands)


@in_turn
def _branch(index: Any, branches: Sequence[Callable[..., Any]], operands: tuple, name: str) -> Any:
    programs = [capture(branch, operands, closed=False) for branch in branches]
    written = tuple(dict.fromkeys(cell for p in programs for cell in p.written))
    before = [read(cell) for cell in written]
    for k, cell in enumerate(written):  # what no branch writes stays, so that all must agree
        new = [dict(zip(p.written, p.out_shape[1])).get(cell) for p in programs]
        first = before[k] if None in new else new[0]
        for value in new:
            if value is not None and not (_is_weak(first) or _is_weak(value)):  # JAX promotes these
                check_carry([cell], [first], [value], name)

    def branch(program: Program) -> Callable:
        def run(before: Any, operands: Any) -> Any:
            out, new = program([], operands, {})
            now = {**dict(zip(written, before)), **dict(zip(program.written, new))}
            return out, [now[cell] for cell in written]

        return run

    out, after = jax.lax.switch(index, [branch(p) for p in programs], before, operands)
    write_all(written, after)
    return out


def _initial(program: Program) -> list[Any]:
    """The values that a loop starts from, as arrays."""
    return [
        _promoted(value, new) for value, new in zip(read_all(program.written), program.out_shape[1])
    ]


def _is_weak(tree: Any) -> bool:
    leaves = [x if hasattr(x, "weak_type") else jax.typeof(x) for x in jax.tree.leaves(tree)]
    return any(getattr(x, "weak_type", False) for x in leaves)


def _promoted(value: Any, new: Any) -> Any:
    """A value as arrays; a Python number of the dtype that the loop writes, as `jax.lax.scan`
    would have it.
    """
    if jax.tree.structure(value) != jax.tree.structure(new):
        return jax.tree.map(jnp.asarray, value)

    def promote(x: Any, like: Any) -> Any:
        x = jnp.asarray(x)
        return (
            x.astype(like.dtype)
            if _is_weak(x) and jnp.result_type(x, like.dtype) == like.dtype
            else x
        )

    return jax.tree.map(promote, value, new)


def _like(new: Sequence[Any], old: Sequence[Any]) -> list[Any]:
    """New values with the container types of the old ones."""
    return [jax.tree.unflatten(jax.tree.structure(o), jax.tree.leaves(n)) for n, o in zip(new, old)]
