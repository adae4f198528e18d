"""`jit`: the values of the cells that a function touches go in, those that it writes come out."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from .._frames import write_all
from ._jitted import Jitted
from ._settings import variant


class _Missing:
    def __repr__(self) -> str:
        return "<missing>"


MISSING: Any = _Missing()


def is_missing(x: Any) -> bool:
    """Whether an argument is left out; brainstate has a class for what stands for it."""
    return x is MISSING or type(x).__name__ == "Missing"


class JittedFunction:
    """What [`statemap.compat.transform.jit`][] returns: a function with the arguments of
    `origin_fun`.
    """

    def __init__(
        self,
        fun: Callable,
        static_argnums: tuple[int, ...],
        static_argnames: tuple[str, ...],
        name: str | None,
        options: dict[str, Any],
    ):
        functools.update_wrapper(self, fun, updated=())
        self.origin_fun: Callable[..., Any] = fun
        self.__wrapped__: Callable[..., Any] = fun
        self.__name__: str = name or getattr(fun, "__name__", type(fun).__name__)
        self._nums, self._names = static_argnums, static_argnames
        self._options = options
        self.clear_cache()

    def clear_cache(self) -> None:
        """Forgets what was compiled."""
        self._variants: list[Jitted] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if jax.config.jax_disable_jit:  # pyright: ignore
            return self.origin_fun(*args, **kwargs)
        cells, (out, new, written) = self._call("__call__", args, kwargs)
        if new:
            write_all([cells[i] for i in written.value], new)
        return out

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """The lowered program, from the values of cells and the arguments."""
        return self._call("lower", args, kwargs)[1]

    def trace(self, *args: Any, **kwargs: Any) -> jax.stages.Traced:
        """The traced program."""
        return self._call("trace", args, kwargs)[1]

    def compile(self, *args: Any, **kwargs: Any) -> jax.stages.Compiled:
        """The compiled program."""
        return self.lower(*args, **kwargs).compile()

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """The shapes and dtypes of the output."""
        return self._call("eval_shape", args, kwargs)[1][0]

    def _call(self, method: str, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return variant(self._variants, self._new).call(method, args, kwargs)

    def _new(self) -> Jitted:
        return Jitted(self.origin_fun, self.__name__, self._nums, self._names, self._options)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        fun = functools.partial(self.origin_fun, instance)
        bound = JittedFunction(fun, self._nums, self._names, self.__name__, self._options)
        return bound

    def __reduce__(self) -> tuple[Any, ...]:
        parts = self.origin_fun, self._nums, self._names, self.__name__, self._options
        return JittedFunction, parts

    def __repr__(self) -> str:
        return f"jit({self.__name__})"


def jit(
    fun: Callable = MISSING,
    in_shardings: Any = MISSING,
    out_shardings: Any = MISSING,
    static_argnums: int | Sequence[int] | None = None,
    donate_argnums: int | Sequence[int] | None = None,
    static_argnames: str | Iterable[str] | None = None,
    donate_argnames: str | Iterable[str] | None = None,
    keep_unused: bool = False,
    device: Any = None,
    backend: str | None = None,
    inline: bool = False,
    name: str | None = None,
    **kwargs: Any,
) -> Any:
    """Compiles a function that uses cells.

    ```python
    import jax.numpy as jnp
    from statemap.compat import ShortTermState, transform

    count = ShortTermState(jnp.zeros((), int))

    @transform.jit
    def step(x):
        count.value = count.value + 1
        return x * count.value

    assert step(2.0) == 2 and step(2.0) == 4
    ```

    The function runs once for each combination of shapes and dtypes. What goes into the compiled
    program are the values of the cells that it uses, and what comes out those that it writes. A
    cell that is made anew (by `init_state`, say) is the one that the next call uses.

    **Arguments:**

    - `fun`: the function. Left out, a decorator is returned.
    - `in_shardings`: a tuple with an entry for each argument.
    - `name`: what profiles call it.
    - The others are those of `jax.jit`.
    """
    if is_missing(fun):
        options = {k: v for k, v in locals().items() if k not in ("fun", "kwargs")}
        return functools.partial(jit, **options, **kwargs)
    if not callable(fun):
        raise TypeError(f"`jit` compiles a function, and {fun!r} can't be called.")
    nums, donated = (
        _numbers(static_argnums, "static_argnums"),
        _numbers(donate_argnums, "donate_argnums"),
    )
    options: dict[str, Any] = {"donate_argnums": tuple(n + 1 for n in donated), **kwargs}
    if not is_missing(in_shardings) and in_shardings is not None:
        if not isinstance(in_shardings, (tuple, list)):
            raise NotImplementedError(
                "`in_shardings` is a tuple with an entry for each argument, since the values of "
                f"the cells go in before them, not {in_shardings!r}."
            )
        options["in_shardings"] = (None, *in_shardings)
    if not is_missing(out_shardings) and out_shardings is not None:
        options["out_shardings"] = (out_shardings, None, None)
    given = {"donate_argnames": donate_argnames, "device": device, "backend": backend}
    options |= {k: v for k, v in given.items() if v is not None}
    options |= {k: v for k, v in {"keep_unused": keep_unused, "inline": inline}.items() if v}
    names = (static_argnames,) if isinstance(static_argnames, str) else static_argnames
    return JittedFunction(fun, nums, tuple(names or ()), name, options)


def _numbers(nums: int | Sequence[int] | None, parameter: str) -> tuple[int, ...]:
    out = (nums,) if isinstance(nums, int) else tuple(nums or ())
    if any(n < 0 for n in out):
        raise ValueError(f"`{parameter}` counts from the first argument, and holds {min(out)}.")
    return out
