"""Loops and branches. Each traces its functions once, and threads the cells that they write.
(After [brainstate](https://brainstate.readthedocs.io), which has the same names and arguments.)
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._frames import in_turn, local, outer_value, read, write_all
from .._lift import capture, check_carry, Program, read_all
from ._progress import with_progress


class _Threaded:
    """Functions that a loop or a branch runs, and the cells that they write, which it carries."""

    def __init__(self, name: str, functions: Sequence[Callable], args: tuple, closed: bool = True):
        """`closed`: they run later and more than once, so that values of cells must be inputs."""
        self.programs = [capture(_unless_unchanged(f), args, closed=closed) for f in functions]
        self.written = tuple(dict.fromkeys(c for p in self.programs for c in p.written))
        used = dict.fromkeys(c for p in self.programs for c in p.cells)
        self.constants = {cell: read(cell) for cell in used if cell not in self.written}
        self.before = read_all(self.written)
        for k, cell in enumerate(self.written):
            news = [dict(zip(p.written, p.out_shape[1])).get(cell) for p in self.programs]
            given = [new for new in news if new is not None]
            for new in given:
                self.before[k] = _promoted(self.before[k], new)
            # Where all branches write, they have to agree with each other only.
            first = self.before[k] if closed or None in news else given[0]
            check_carry([cell] * len(given), [first] * len(given), given, name)

    def call(self, program: Program, held: Sequence[Any], *args: Any) -> tuple[list[Any], Any]:
        """The new values of `written`, and what the function returns."""
        now = {**self.constants, **dict(zip(self.written, held))}
        out, new = program([now[cell] for cell in program.cells], args, {})
        now.update(zip(program.written, new))
        return [now[cell] for cell in self.written], out


def _unless_unchanged(fn: Callable) -> Callable:
    """A function that does not count as writing what it gives a cell back as it was, so that in
    the lanes of a map, where all branches run, this is no difference between lanes.
    """

    def run(*args: Any) -> Any:
        out = fn(*args)
        frame = local.frames[-1]
        for cell in list(frame.written):
            given = cell in frame.given
            before = frame._initial[cell] if given else outer_value(cell, frame.number - 1)
            # A container may have been changed in place.
            if frame.values[cell] is before and jax.tree_util.all_leaves([before]):
                del frame.written[cell]
        return out

    return run


def _promoted(value: Any, new: Any) -> Any:
    """A value as arrays; a Python number of the dtype that is written, as `jax.lax.scan` would
    have it.
    """
    if jax.tree.structure(value) != jax.tree.structure(new):
        return jax.tree.map(jnp.asarray, value)

    def promote(x: Any, like: Any) -> Any:
        x = jnp.asarray(x)
        weak = getattr(x, "weak_type", False)
        return x.astype(like.dtype) if weak and jnp.result_type(x, like) == like.dtype else x

    return jax.tree.map(promote, value, new)


def _in_python(*known: Any) -> bool:
    """Whether to go step by step, under `jax.disable_jit()`. What decides has to be known then."""
    if not jax.config.jax_disable_jit:  # pyright: ignore
        return False
    try:
        for x in known:
            bool(x)
    except jax.errors.ConcretizationTypeError:
        return False
    return True


# Loops.


def scan(
    f: Callable, init: Any, xs: Any, length: int | None = None, reverse: bool = False,
    unroll: int | bool = 1, pbar: Any = None,
) -> tuple[Any, Any]:  # fmt: skip
    """[brainstate's `scan`](https://brainstate.readthedocs.io)."""
    loop = partial(jax.lax.scan, reverse=reverse, unroll=unroll)
    return _scan("scan", f, init, xs, length, pbar, loop)


def checkpointed_scan(
    f: Callable, init: Any, xs: Any, length: int | None = None, base: int = 16,
    pbar: Any = None,
) -> tuple[Any, Any]:  # fmt: skip
    """[brainstate's `checkpointed_scan`](https://brainstate.readthedocs.io)."""
    loop = partial(_checkpointed, base=_checked_base(base))
    return _scan("checkpointed_scan", f, init, xs, length, pbar, loop)


def for_loop(
    f: Callable, *xs: Any, length: int | None = None, reverse: bool = False,
    unroll: int | bool = 1, pbar: Any = None,
) -> Any:  # fmt: skip
    """[brainstate's `for_loop`](https://brainstate.readthedocs.io), over the rows of `xs`."""
    loop = partial(jax.lax.scan, reverse=reverse, unroll=unroll)
    return _scan("for_loop", f, None, xs, length, pbar, loop, rows=True)[1]


def checkpointed_for_loop(
    f: Callable, *xs: Any, length: int | None = None, base: int = 16,
    pbar: Any = None,
) -> Any:  # fmt: skip
    """[brainstate's `checkpointed_for_loop`](https://brainstate.readthedocs.io)."""
    loop = partial(_checkpointed, base=_checked_base(base))
    return _scan("checkpointed_for_loop", f, None, xs, length, pbar, loop, rows=True)[1]


@in_turn
def _scan(
    name: str, f: Callable, init: Any, xs: Any, length: int | None, pbar: Any, loop: Callable,
    rows: bool = False,
) -> tuple[Any, Any]:  # fmt: skip
    """By `loop`, which is `jax.lax.scan` or of its kind. With `rows`, `f` takes the rows alone."""
    if not callable(f):
        raise TypeError(f"`{name}` takes a function, and {f!r} can't be called.")
    shapes = [jnp.shape(x) for x in jax.tree.leaves(xs)]
    sizes = {shape[:1] for shape in shapes} | ({(int(length),)} if length is not None else set())
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(
            f"`{name}` needs one length: the arrays have the shapes {shapes}, and `length` is "
            f"{length}."
        )
    ((steps,),) = sizes
    if rows:
        f = partial(lambda f, carry, xs: (carry, f(*xs)), f)
    if pbar is not None:
        f, init = with_progress(f, pbar, steps), (0, init)
    if _in_python():
        carry, ys = loop(f, init, xs, length=steps)
    else:
        row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[1:], jnp.result_type(x)), xs)
        threaded = _Threaded(name, [f], (init, row))
        (program,) = threaded.programs
        outs = program.out_shape[0]
        if not isinstance(outs, tuple) or len(outs) != 2:
            raise TypeError(f"The function of `{name}` returns `(carry, y)`, not {outs}.")

        def body(carry: Any, x: Any) -> Any:
            held, (own, y) = threaded.call(program, *carry, x)
            return (held, own), y

        (after, carry), ys = loop(body, (threaded.before, init), xs, length=steps)
        write_all(threaded.written, after)
    return carry if pbar is None else carry[1], ys


def _checked_base(base: int) -> int:
    if isinstance(base, bool) or not isinstance(base, int) or base < 2:
        raise ValueError(f"`base` is an integer of at least 2, not {base!r}.")
    return base


def _checkpointed(body: Callable, carry: Any, xs: Any, length: int, base: int) -> tuple[Any, Any]:
    """A scan in blocks of blocks, each of which keeps only what goes into it."""
    if length <= base or _in_python():
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
    """[brainstate's `while_loop`](https://brainstate.readthedocs.io). `cond_fun` may only read."""
    return _while(cond_fun, body_fun, init_val, jax.lax.while_loop)


def bounded_while_loop(
    cond_fun: Callable, body_fun: Callable, init_val: Any, *, max_steps: int, base: int = 16
) -> Any:
    """[brainstate's `bounded_while_loop`](https://brainstate.readthedocs.io). It has gradients."""
    if not isinstance(max_steps, int) or max_steps < 0:
        raise ValueError(f"`max_steps` is a number of steps, not {max_steps!r}.")
    _checked_base(base)

    def loop(cond: Callable, body: Callable, init: Any) -> Any:
        def step(val: Any, _: Any) -> tuple[Any, None]:
            return jax.lax.cond(cond(val), body, lambda val: val, val), None

        return _checkpointed(step, init, None, max_steps, base)[0] if max_steps else init

    return _while(cond_fun, body_fun, jax.tree.map(jnp.asarray, init_val), loop)


@in_turn
def _while(cond_fun: Callable, body_fun: Callable, init_val: Any, loop: Callable) -> Any:
    if not (callable(cond_fun) and callable(body_fun)):
        raise TypeError("`while_loop` takes two functions, `cond_fun` and `body_fun`.")
    if _in_python() and _in_python(cond_fun(init_val)):
        return loop(cond_fun, body_fun, init_val)
    threaded = _Threaded("while_loop", (cond_fun, body_fun), (init_val,))
    cond, body = threaded.programs
    if cond.written:
        raise ValueError(
            f"`cond_fun` writes to a {cond.written[0].label}. It may only read; write in "
            "`body_fun`."
        )
    after, out = loop(
        lambda carry: threaded.call(cond, *carry)[1],
        lambda carry: threaded.call(body, *carry),
        (threaded.before, init_val),
    )
    write_all(threaded.written, after)
    return out


# Branches.


def cond(pred: Any, true_fun: Callable, false_fun: Callable, *operands: Any) -> Any:
    """[brainstate's `cond`](https://brainstate.readthedocs.io). A cell that only one function
    writes stays as it is with the other.
    """
    if not (callable(true_fun) and callable(false_fun)):
        raise TypeError("`cond` takes two functions, `true_fun` and `false_fun`.")
    single = pred is not None and not isinstance(pred, (list, tuple)) and np.ndim(pred) == 0
    if not single or np.dtype(jnp.result_type(pred)).kind not in "biuf":
        raise TypeError(f"The predicate of `cond` is a single bool or number, not {pred!r}.")
    index = jnp.asarray(pred).astype(bool).astype(int)
    return _branch("cond", index, (false_fun, true_fun), operands)


def switch(index: Any, branches: Sequence[Callable[..., Any]], *operands: Any) -> Any:
    """[brainstate's `switch`](https://brainstate.readthedocs.io)."""
    branches = tuple(branches)
    if not all(callable(branch) for branch in branches):
        raise TypeError("`switch` takes a sequence of functions.")
    if not branches:
        raise ValueError("`switch` needs a branch to choose.")
    if np.ndim(index) != 0 or np.dtype(jnp.result_type(index)).kind not in "iu":
        raise TypeError(f"The index of `switch` is a single integer, not {index!r}.")
    return _branch("switch", index, branches, operands)


def ifelse(
    conditions: Sequence[Any], branches: Sequence[Callable[..., Any]], *operands: Any,
    check_cond: bool = True,
) -> Any:  # fmt: skip
    """[brainstate's `ifelse`](https://brainstate.readthedocs.io)."""
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
    return _branch("ifelse", index, branches, operands)


@in_turn
def _branch(name: str, index: Any, branches: Sequence[Callable], operands: tuple) -> Any:
    if len(branches) == 1:
        return branches[0](*operands)
    if _in_python(index):
        return branches[min(max(int(index), 0), len(branches) - 1)](*operands)
    threaded = _Threaded(name, branches, operands, closed=False)
    calls = [partial(threaded.call, program) for program in threaded.programs]
    after, out = jax.lax.switch(index, calls, threaded.before, *operands)
    write_all(threaded.written, after)
    return out
