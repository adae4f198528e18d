"""`StatefulFunction`: a function traced once for each signature, to look into."""

import importlib
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..._cache import Cache
from ..._exact import exact
from ..._jaxpr import eval_jaxpr
from ..._programs import abstract, CacheKey as Abstract
from ..._settings import now, Read
from .._catch import StateTraceStack
from .._frames import Frame, in_turn, peek, write_all
from .._lift import arrays_of, capture, read_all, refuse_cells, run
from ._arguments import counted, names_of, numbers_of, split_static


class CacheKey(NamedTuple):
    """What a function is traced for: structures, shapes and dtypes, and static values."""

    static_args: Hashable
    dyn_args: Abstract
    static_kwargs: Hashable
    dyn_kwargs: Abstract


class _Traced(NamedTuple):
    """What came of tracing."""

    jaxpr: Any  # from the arguments and the values of the cells to the output and the new values
    out_shapes: Any  # of these two
    trace: StateTraceStack  # the cells
    kinds: list[Any]  # of their values
    settings: Read

    def is_current(self) -> bool:
        """Whether the cells hold values of these kinds, and the settings are those."""
        values = tuple(self.settings.values())
        return now(self.settings) == values and _kinds(self.trace.states) == self.kinds


def _pair(look: Callable[[_Traced], Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The two methods that show something of what was traced, by arguments and by key."""

    def get(self: Any, *args: Any, compile_if_miss: bool = True, **kwargs: Any) -> Any:
        key = self.get_arg_cache_key(*args, compile_if_miss=compile_if_miss, **kwargs)
        return look(self._traced(key))

    def get_by_cache(self: Any, cache_key: Hashable) -> Any:
        return look(self._traced(cache_key))

    return get, get_by_cache


class StatefulFunction:
    """A function that uses cells as a jaxpr, from its arguments and the values of the cells:
    [brainstate's `StatefulFunction`](https://brainstate.readthedocs.io), all of whose methods there
    are. `static_argnums` may count from the end. `ir_optimizations` are those of an installed
    brainstate; XLA does the same, and more, when it compiles.
    """

    def __init__(
        self, fun: Callable, static_argnums: int | Iterable[int] | None = (),
        static_argnames: str | Iterable[str] | None = (), axis_env: Any = None,
        name: str | None = None, return_only_write: bool = True, ir_optimizations: Any = None,
    ):  # fmt: skip
        if not callable(fun):
            raise TypeError(f"A StatefulFunction is made of a function, not {fun!r}.")
        passes = (ir_optimizations,) if isinstance(ir_optimizations, str) else ir_optimizations
        self._optimize = None if passes is None else _optimizer()
        self.ir_optimizations: Any = passes
        self.fun: Callable[..., Any] = fun
        self.__wrapped__: Callable[..., Any] = fun
        self.static_argnums: tuple[int, ...] = numbers_of(static_argnums)
        self.static_argnames: tuple[str, ...] = names_of(static_argnames)
        self.axis_env = axis_env
        self.name = name
        self.return_only_write = return_only_write
        self.clear_cache()

    def clear_cache(self) -> None:
        """Forgets what was traced."""
        self._lock = threading.RLock()
        self._cache: Cache[_Traced] = Cache(128)
        self._hits = self._misses = 0

    def get_arg_cache_key(
        self, *args: Any, compile_if_miss: bool = False, **kwargs: Any
    ) -> Hashable:
        """The key by which what is traced for these arguments is found."""
        if compile_if_miss:
            self.make_jaxpr(*args, **kwargs)
        dynamic, named, _ = self._split(args, kwargs)
        refuse_cells((dynamic, named))
        static = tuple(exact(args[i]) for i in self.static_argnums)
        names = tuple(exact((k, v)) for k, v in sorted(kwargs.items()) if k not in named)
        return CacheKey(static, _abstract(dynamic), names, _abstract(named))

    def make_jaxpr(self, *args: Any, **kwargs: Any) -> "StatefulFunction":
        """Traces the function for these arguments, if it is not yet."""
        key = self.get_arg_cache_key(*args, **kwargs)
        try:
            found = self._cache.get(key)
        except TypeError as error:
            raise TypeError(f"Static arguments are hashable. {error}") from None
        if found is not None and found.is_current():
            self._hits += 1
        else:
            with self._lock:
                self._misses += 1
                try:
                    self._cache.replace(key, self._trace(args, kwargs))
                except BaseException:
                    self._cache.discard(key)
                    raise
        return self

    get_jaxpr: Callable[..., Any]
    get_jaxpr_by_cache: Callable[..., Any]
    get_out_shapes: Callable[..., Any]
    get_out_shapes_by_cache: Callable[..., Any]
    get_out_treedef: Callable[..., Any]
    get_out_treedef_by_cache: Callable[..., Any]
    get_state_trace: Callable[..., Any]
    get_state_trace_by_cache: Callable[..., Any]
    get_states: Callable[..., Any]
    get_states_by_cache: Callable[..., Any]
    get_read_states: Callable[..., Any]
    get_read_states_by_cache: Callable[..., Any]
    get_write_states: Callable[..., Any]
    get_write_states_by_cache: Callable[..., Any]
    get_jaxpr, get_jaxpr_by_cache = _pair(lambda found: found.jaxpr)
    get_out_shapes, get_out_shapes_by_cache = _pair(lambda found: found.out_shapes)
    get_out_treedef, get_out_treedef_by_cache = _pair(lambda x: jax.tree.structure(x.out_shapes))
    get_state_trace, get_state_trace_by_cache = _pair(lambda found: found.trace)
    get_states, get_states_by_cache = _pair(lambda found: tuple(found.trace.states))
    get_read_states, get_read_states_by_cache = _pair(lambda x: x.trace.get_read_states())
    get_write_states, get_write_states_by_cache = _pair(lambda x: x.trace.get_write_states())

    def get_cache_stats(self) -> dict[str, Any]:
        """How often what was needed had been traced."""
        rate = 100 * self._hits / max(self._hits + self._misses, 1)
        counts = {"hits": self._hits, "misses": self._misses, "hit_rate": rate}
        return {"compilation_cache": {"size": len(self._cache), "maxsize": 128, **counts}}

    def validate_states(self, cache_key: Hashable) -> bool:
        """Whether the cells of a key are cells, as they always are."""
        return self._traced(cache_key) is not None

    def validate_all_states(self) -> dict[Any, bool]:
        """The same of all keys."""
        return {key: self.validate_states(key) for key in list(self._cache.items)}

    def jaxpr_call(self, state_vals: Sequence[Any], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Evaluates the jaxpr with these values of `get_states`, and changes no cell. Returns
        `(new values, output)`, with None for cells that are only read, if `return_only_write`.
        """
        if jax.config.jax_disable_jit:  # pyright: ignore
            return self.debug_call(state_vals, *args, **kwargs)
        found = self._traced(self.get_arg_cache_key(*args, compile_if_miss=True, **kwargs))
        _check_values(found, state_vals)
        return self._evaluate(found, state_vals, args, kwargs)

    def debug_call(self, state_vals: Sequence[Any], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """`jaxpr_call` that runs the function itself."""
        found = self._traced(self.get_arg_cache_key(*args, compile_if_miss=True, **kwargs))
        _check_values(found, state_vals)
        cells = found.trace.states
        frame = Frame(cells, state_vals)
        out, new = run(self.fun, frame, *args, **kwargs)
        return self._returned(cells, state_vals, frame.written, new), out

    @in_turn
    def jaxpr_call_auto(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates the jaxpr, and writes the new values to the cells."""
        if jax.config.jax_disable_jit:  # pyright: ignore
            return self.fun(*args, **kwargs)
        found = self._traced(self.get_arg_cache_key(*args, compile_if_miss=True, **kwargs))
        cells = found.trace.states
        new, out = self._evaluate(found, read_all(cells), args, kwargs)
        written = [i for i, been in enumerate(found.trace.been_writen) if been]
        write_all([cells[i] for i in written], [new[i] for i in written])
        return out

    __call__ = jaxpr_call_auto

    def _evaluate(self, found: _Traced, values: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        dynamic, named, _ = self._split(args, kwargs)
        leaves = jax.tree.leaves((dynamic, named, list(values)))
        flat = eval_jaxpr(found.jaxpr.jaxpr, found.jaxpr.consts, *leaves)
        out, new = jax.tree.unflatten(jax.tree.structure(found.out_shapes), flat)
        return new, out

    def _split(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any], Callable]:
        """The arguments that are traced, and the function with the static ones bound."""
        for i in self.static_argnums:
            if not -len(args) <= i < len(args):
                raise ValueError(
                    f"static_argnums contains index {i}, and there {counted(args)} by position."
                )
        return split_static(self.fun, self.static_argnums, self.static_argnames, args, kwargs)

    def _trace(self, args: tuple, kwargs: dict[str, Any]) -> _Traced:
        dynamic, named, bound = self._split(args, kwargs)
        program = capture(bound, dynamic, named, axis_env=self.axis_env)
        cells = tuple(dict.fromkeys([*program.read, *program.written, *program.cells]))

        def flat(args: Any, kwargs: Any, values: Any) -> Any:
            held = dict(zip(cells, values))
            out, new = program([held[cell] for cell in program.cells], args, kwargs)
            return out, self._returned(cells, values, program.written, new)

        env = {} if self.axis_env is None else {"axis_env": self.axis_env}
        make = jax.make_jaxpr(flat, return_shape=True, **env)
        jaxpr, shapes = make(dynamic, named, [peek(cell) for cell in cells])
        if self._optimize is not None:
            jaxpr = self._optimize(jaxpr, optimizations=list(self.ir_optimizations))
        trace = StateTraceStack(self.name)
        trace.states.extend(cells)
        trace.been_writen.extend(cell in program.written for cell in cells)
        return _Traced(jaxpr, shapes, trace, _kinds(cells), program.settings)

    def _returned(self, cells: Any, values: Any, written: Iterable[Any], new: Any) -> tuple:
        after = dict(zip(written, new))
        kept = [None if self.return_only_write else value for value in values]
        return tuple(after.get(cell, k) for cell, k in zip(cells, kept))

    def _traced(self, key: Hashable) -> _Traced:
        found = self._cache.get(key)
        if found is None:
            raise ValueError(
                "The function is not compiled for these arguments. Trace it for them: "
                f"`make_jaxpr()`.\nRequested key:\n  {key}\nAvailable keys:\n  "
                + "\n  ".join(map(str, self._cache.items))
            )
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        parts = self.static_argnums, self.static_argnames, self.axis_env, self.name
        return StatefulFunction, (self.fun, *parts, self.return_only_write, self.ir_optimizations)

    def __repr__(self) -> str:
        return f"StatefulFunction({getattr(self.fun, '__name__', self.fun)})"


def _optimizer() -> Callable[..., Any]:
    try:
        return importlib.import_module("brainstate.transform").optimize_jaxpr
    except (ImportError, AttributeError):
        raise NotImplementedError(
            "`ir_optimizations` are those of brainstate, which is not installed. Leave them out: "
            "XLA removes dead code and common subexpressions, and folds constants, when it "
            "compiles the jaxpr."
        ) from None


def _check_values(found: _Traced, values: Sequence[Any]) -> None:
    if len(values) != len(found.kinds):
        raise ValueError(
            f"State length mismatch: the function uses {len(found.kinds)} cells, and was given "
            f"{len(values)} values."
        )
    for i, (value, (treedef, _)) in enumerate(zip(values, found.kinds)):
        if value is None and treedef.num_leaves:
            label = found.trace.states[i].label
            raise ValueError(f"`state_vals` contains None at index {i}, the value of a {label}.")


def _abstract(tree: Any) -> Abstract:
    leaves, treedef = jax.tree.flatten(tree)
    arrays = [x if hasattr(x, "dtype") else jnp.asarray(x) for x in leaves]
    return Abstract(treedef, tuple(map(abstract, arrays)))


def _kinds(cells: Iterable[Any]) -> list[Any]:
    flat = [jax.tree.flatten(arrays_of(cell)) for cell in cells]
    return [(t, [(jnp.shape(x), jnp.result_type(x)) for x in xs]) for xs, t in flat]


def make_jaxpr(
    fun: Callable, static_argnums: int | Iterable[int] = (),
    static_argnames: str | Iterable[str] = (), axis_env: Any = None, return_shape: bool = False,
    return_only_write: bool = False,
) -> Callable[..., Any]:  # fmt: skip
    """[brainstate's `make_jaxpr`](https://brainstate.readthedocs.io): it gives `(jaxpr, cells)`."""
    function = StatefulFunction(
        fun, static_argnums, static_argnames, axis_env, return_only_write=return_only_write
    )

    def make(*args: Any, **kwargs: Any) -> Any:
        jaxpr, cells = function.get_jaxpr(*args, **kwargs), function.get_states(*args, **kwargs)
        if return_shape:
            return jaxpr, cells, function.get_out_shapes(*args, **kwargs)[0]
        return jaxpr, cells

    make.__name__ = make.__qualname__ = f"make_jaxpr({getattr(fun, '__name__', fun)})"
    return make
