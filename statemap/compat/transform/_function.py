"""`StatefulFunction`: a function traced once for each signature, to look into."""

import threading
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from ..._cache import Cache
from ..._programs import abstract, CacheKey
from .._cells import State
from .._frames import Frame, local, write_all
from .._lift import arrays_of, capture, Program, read_all, run
from ._jit import _numbers
from ._missing import left_out, MISSING


class StatefulFunction:
    """A function that uses cells as a jaxpr. (After `brainstate.transform.StatefulFunction`.)

    ```python
    import jax.numpy as jnp
    from statemap.compat import ShortTermState, transform

    count = ShortTermState(jnp.zeros(3))

    def step(x):
        count.value = count.value + x

    function = transform.StatefulFunction(step).make_jaxpr(1.0)
    assert function.get_write_states(1.0) == (count,)
    ```
    """

    def __init__(
        self,
        fun: Callable,
        static_argnums: int | Iterable[int] = (),
        static_argnames: str | Iterable[str] = (),
        axis_env: Any = None,
        name: str | None = None,
        return_only_write: bool = True,
        ir_optimizations: None = None,
    ):
        """**Arguments:**

        - `fun`: the function.
        - `static_argnums`, `static_argnames`: arguments that are compiled in.
        - `axis_env`: names and sizes of axes, for collectives.
        - `name`: a name.
        - `return_only_write`: whether only values that were written come out of the jaxpr, or
            those of all cells that the function uses.
        - `ir_optimizations`: not supported, None only.
        """
        if ir_optimizations is not None:
            raise NotImplementedError(
                "`ir_optimizations` is not supported: XLA removes dead code and common "
                "subexpressions, and folds constants, when it compiles the jaxpr."
            )
        if not callable(fun):
            raise TypeError(f"A StatefulFunction is made of a function, not {fun!r}.")
        self.fun: Callable[..., Any] = fun
        self.__wrapped__: Callable[..., Any] = fun
        self.static_argnums: tuple[int, ...] = _numbers(static_argnums, "static_argnums")  # pyright: ignore
        names = (static_argnames,) if isinstance(static_argnames, str) else static_argnames
        self.static_argnames: tuple[str, ...] = tuple(names or ())
        self.axis_env = axis_env
        self.name = name
        self.return_only_write = return_only_write
        self.clear_cache()

    def clear_cache(self) -> None:
        """Forgets what was traced."""
        self._lock = threading.RLock()
        self._programs: Cache[Program] = Cache(128)

    def get_arg_cache_key(
        self, *args: Any, compile_if_miss: bool = False, **kwargs: Any
    ) -> Hashable:
        """What the function is traced for: structures, shapes and dtypes, static values."""
        if compile_if_miss:
            self.make_jaxpr(*args, **kwargs)
        static, dynamic, named = self._split(args, kwargs)
        leaves, treedef = jax.tree.flatten((dynamic, named))
        leaves = tuple(abstract(x if hasattr(x, "dtype") else jnp.asarray(x)) for x in leaves)
        return CacheKey(treedef, leaves), static

    def make_jaxpr(self, *args: Any, **kwargs: Any) -> "StatefulFunction":
        """Traces the function for these arguments, if it is not yet."""
        self._program(args, kwargs)
        return self

    def get_jaxpr(self, *args: Any, **kwargs: Any) -> Any:
        """The jaxpr: from the values of the cells and the arguments to the output and the new
        values.
        """
        return self._program(args, kwargs).jaxpr

    def get_jaxpr_by_cache(self, cache_key: Hashable) -> Any:
        """The jaxpr of a key from `get_arg_cache_key`."""
        return self._by_key(cache_key).jaxpr

    def get_out_shapes(self, *args: Any, **kwargs: Any) -> Any:
        """`(shapes of the output, shapes of the new values)`."""
        return self._program(args, kwargs).out_shape

    def get_out_shapes_by_cache(self, cache_key: Hashable) -> Any:
        """`get_out_shapes` of a key from `get_arg_cache_key`."""
        return self._by_key(cache_key).out_shape

    def get_out_treedef(self, *args: Any, **kwargs: Any) -> Any:
        """The structure of `get_out_shapes`."""
        return self._program(args, kwargs).out_treedef

    def get_states(self, *args: Any, **kwargs: Any) -> tuple[State, ...]:
        """The cells that the function uses, in the order in which their values go in."""
        return self._program(args, kwargs).cells

    def get_states_by_cache(self, cache_key: Hashable) -> tuple[State, ...]:
        """`get_states` of a key from `get_arg_cache_key`."""
        return self._by_key(cache_key).cells

    def get_read_states(self, *args: Any, **kwargs: Any) -> tuple[State, ...]:
        """The cells that are read and not written."""
        return _only_read(self._program(args, kwargs))

    def get_read_states_by_cache(self, cache_key: Hashable) -> tuple[State, ...]:
        """`get_read_states` of a key from `get_arg_cache_key`."""
        return _only_read(self._by_key(cache_key))

    def get_write_states(self, *args: Any, **kwargs: Any) -> tuple[State, ...]:
        """The cells that are written."""
        return self._program(args, kwargs).written

    def get_write_states_by_cache(self, cache_key: Hashable) -> tuple[State, ...]:
        """`get_write_states` of a key from `get_arg_cache_key`."""
        return self._by_key(cache_key).written

    def jaxpr_call(self, state_vals: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Evaluates the jaxpr, and changes no cell.

        **Arguments:**

        - `state_vals`: a value for each of `get_states`.

        **Returns:**

        `(new values, output)`: the new value of each cell, with `return_only_write` None for
        those that are only read.
        """
        program = self._program(args, kwargs)
        if len(state_vals) != len(program.cells):
            raise ValueError(
                f"The function uses {len(program.cells)} cells, and was given "
                f"{len(state_vals)} values."
            )
        _, dynamic, named = self._split(args, kwargs)
        out, new = program(state_vals, dynamic, named)
        after = dict(zip(program.written, new))
        kept = [None if self.return_only_write else value for value in state_vals]
        return tuple(after.get(c, k) for c, k in zip(program.cells, kept)), out

    def jaxpr_call_auto(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates the jaxpr, and writes the new values to the cells."""
        program = self._program(args, kwargs)
        _, dynamic, named = self._split(args, kwargs)
        out, new = program(read_all(program.cells), dynamic, named)
        write_all(program.written, new)
        return out

    __call__ = jaxpr_call_auto

    def _split(self, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, tuple, dict[str, Any]]:
        static = {i: a for i, a in enumerate(args) if i in self.static_argnums}
        names = {k: v for k, v in kwargs.items() if k in self.static_argnames}
        dynamic = tuple(a for i, a in enumerate(args) if i not in static)
        named = {k: v for k, v in kwargs.items() if k not in names}
        return (tuple(static.items()), tuple(sorted(names.items()))), dynamic, named

    def _program(self, args: tuple, kwargs: dict[str, Any]) -> Program:
        key = self.get_arg_cache_key(*args, **kwargs)
        found = self._programs.get(key)
        if found is None or not _fits(found):
            with self._lock:
                self._programs.discard(key)
                found = self._programs.add(key, self._trace(args, kwargs))
        return found

    def _trace(self, args: tuple, kwargs: dict[str, Any]) -> Program:
        (static, names), dynamic, named = self._split(args, kwargs)

        def bound(*given: Any, **named: Any) -> Any:
            own, fixed = iter(given), dict(static)
            every = [fixed[i] if i in fixed else next(own) for i in range(len(args))]
            return self.fun(*every, **dict(names), **named)

        return capture(bound, dynamic, named, axis_env=self.axis_env)

    def _by_key(self, key: Hashable) -> Program:
        found = self._programs.get(key)
        if found is None:
            raise ValueError(
                f"The function has not been traced for {key!r}. Trace it: `make_jaxpr(*args)`."
            )
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        parts = self.static_argnums, self.static_argnames, self.axis_env, self.name
        return StatefulFunction, (self.fun, *parts, self.return_only_write)

    def __repr__(self) -> str:
        return f"StatefulFunction({getattr(self.fun, '__name__', self.fun)})"


def _only_read(program: Program) -> tuple[State, ...]:
    return tuple(cell for cell in program.cells if cell not in program.written)


def _fits(program: Program) -> bool:
    """Whether the cells still have the shapes that the program was traced with."""
    leaves = [x for cell in program.cells for x in jax.tree.leaves(arrays_of(cell))]
    avals = program.jaxpr.in_avals[: len(leaves)]
    return len(avals) == len(leaves) and all(
        jnp.shape(x) == a.shape and jnp.result_type(x) == a.dtype for x, a in zip(leaves, avals)
    )


def make_jaxpr(
    fun: Callable,
    static_argnums: int | Iterable[int] = (),
    static_argnames: str | Iterable[str] = (),
    axis_env: Any = None,
    return_shape: bool = False,
    return_only_write: bool = False,
) -> Callable[..., Any]:
    """`jax.make_jaxpr` of a function that uses cells.

    **Arguments:**

    - `return_shape`: whether to return the shapes of the output as well.
    - The others are those of [`statemap.compat.transform.StatefulFunction`][].

    **Returns:**

    A function that returns `(jaxpr, cells)`, or `(jaxpr, cells, shapes)`.
    """
    function = StatefulFunction(
        fun, static_argnums, static_argnames, axis_env, return_only_write=return_only_write
    )

    def make(*args: Any, **kwargs: Any) -> Any:
        jaxpr, cells = function.get_jaxpr(*args, **kwargs), function.get_states(*args, **kwargs)
        if return_shape:
            return jaxpr, cells, function.get_out_shapes(*args, **kwargs)[0]
        return jaxpr, cells

    return make


def eval_shape(f: Callable, *args: Any, return_state_shapes: bool = False, **kwargs: Any) -> Any:
    """The shapes and dtypes of what a function returns, without computing it. Cells that it makes
    hold `jax.ShapeDtypeStruct`s, so that `eval_shape(Model)` gives a model without numbers.

    **Arguments:**

    - `return_state_shapes`: whether to return `(by cell, the shapes of what it holds; shapes)`.
    """
    frames: list[Frame] = []
    others: dict[int, Any] = {}
    treedefs: list[Any] = []

    def pure(args: Any, kwargs: Any) -> Any:
        frames.append(frame := Frame())

        def call() -> Any:
            return jax.tree.flatten(f(*args, **kwargs)), [c.value for c in frame.created]

        (leaves, treedef), made = frame.run(call)
        arrays = {i: x for i, x in enumerate(leaves) if _is_output(x)}
        others.update({i: x for i, x in enumerate(leaves) if i not in arrays})
        treedefs.append(treedef)
        used = [*frame.read, *(c for c in frame.written if c not in frame.read)]
        values = [frame.get(cell) for cell in used]
        frame.release()
        return arrays, made, values

    arrays, made, used = jax.eval_shape(pure, args, kwargs)
    frame = frames[-1]
    for cell, value in zip(frame.created, made):
        cell._held, cell._level = value, len(local.frames)
    out = jax.tree.unflatten(treedefs[-1], [v for _, v in sorted({**arrays, **others}.items())])
    cells = [*frame.read, *(c for c in frame.written if c not in frame.read)]
    return (dict(zip(cells, used)), out) if return_state_shapes else out


def _is_output(x: Any) -> bool:
    return isinstance(x, (jax.Array, int, float, complex)) or hasattr(x, "dtype")


def checkpoint(
    fun: Any = MISSING,
    *,
    prevent_cse: bool = True,
    policy: Callable[..., bool] | None = None,
    static_argnums: int | tuple[int, ...] = (),
) -> Callable:
    """`jax.checkpoint` of a function that uses cells: under a gradient it is computed again
    rather than kept.

    **Arguments:**

    Those of `jax.checkpoint`.
    """
    if left_out(fun) or fun is None:
        return lambda f: checkpoint(
            f, prevent_cse=prevent_cse, policy=policy, static_argnums=static_argnums
        )
    nums = _numbers(static_argnums, "static_argnums")
    options: dict[str, Any] = {"policy": policy, "static_argnums": nums}

    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        frames: list[Frame] = []

        def pure(*args: Any, **kwargs: Any) -> Any:
            frames.append(Frame())
            return run(fun, frames[-1], *args, **kwargs)

        out, new = jax.checkpoint(pure, prevent_cse=prevent_cse, **options)(*args, **kwargs)
        write_all(tuple(frames[-1].written), new)
        return out

    checkpointed.__wrapped__ = fun  # pyright: ignore
    checkpointed.__name__ = getattr(fun, "__name__", type(fun).__name__)
    return checkpointed


remat = checkpoint
