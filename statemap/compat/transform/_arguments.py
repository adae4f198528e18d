"""Arguments of transforms, in JAX's words and brainstate's: what is left out, what is static."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any


class Missing:
    def __repr__(self) -> str:
        return "<missing>"


MISSING: Any = Missing()


def left_out(x: Any) -> bool:
    """Whether an argument is not given: in our words, in brainstate's (`Missing` or an instance of
    it) or in JAX's.
    """
    kind = x if isinstance(x, type) else type(x)
    return x is None or kind.__name__.lstrip("_") in ("Missing", "UnspecifiedValue")


def names_of(names: str | Iterable[str] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())


def numbers_of(nums: int | Iterable[int] | None) -> tuple[int, ...]:
    return (nums,) if isinstance(nums, int) else tuple(nums or ())


def from_start(nums: int | Iterable[int] | None, fn: Any) -> tuple[int, ...]:
    """Positions among the arguments of a function. Those from the end are counted from the start,
    if it can be told how many arguments there are.
    """
    out = numbers_of(nums)
    if all(n >= 0 for n in out) or not callable(fn):
        return out
    parameters = inspect.signature(fn).parameters.values()
    if any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return out
    count = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    return tuple(n + count if n < 0 else n for n in out)


def split_static(
    fn: Callable, nums: Iterable[int], names: Iterable[str], args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any], Callable]:
    """The arguments that are traced, and the function with the static ones bound."""
    fixed = {n + len(args) if n < 0 else n for n in nums}
    static = {k: v for k, v in kwargs.items() if k in names}

    def bound(*given: Any, **named: Any) -> Any:
        own = iter(given)
        return fn(*(a if i in fixed else next(own) for i, a in enumerate(args)), **static, **named)

    dynamic = tuple(a for i, a in enumerate(args) if i not in fixed)
    return dynamic, {k: v for k, v in kwargs.items() if k not in static}, bound


def counted(args: tuple) -> str:
    """How many arguments there are, for messages."""
    return "is 1 argument" if len(args) == 1 else f"are {len(args)} arguments"
