"""Filters: which states of a context something is about.

The vocabulary is brainstate's (`brainstate.util.filter`), which has it from Flax NNX.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator
from typing import Any as AnyType, cast

import equinox as eqx
import jax

from ._exact import by_identity
from ._state import NonBatchState, State
from ._values import dotted, Path


Predicate = Callable[[Path, State], bool]
Filter = AnyType  # a filter may be a type, a tag, a bool, `...`, a callable, a sequence, ...


@dataclasses.dataclass(frozen=True)
class OfType:
    """Matches the states of a kind, its subclasses included.

    ```python
    import jax.numpy as jnp
    import statemap as sm

    states = sm.States(w=sm.ParamState(jnp.ones(2)), v=sm.ShortTermState(jnp.zeros(2)))
    assert [path for path, _ in states.select(sm.OfType(sm.ParamState))] == [("w",)]
    ```
    """

    type: type

    def __post_init__(self) -> None:
        if not isinstance(self.type, type):
            raise TypeError(
                f"`OfType` takes a kind of State, a class, not {self.type!r}.\n"
                'Wrong:  sm.OfType("ParamState")\n'
                "Right:  sm.OfType(sm.ParamState)"
            )

    def __call__(self, path: Path, state: State) -> bool:
        return isinstance(state, self.type)

    def __repr__(self) -> str:
        return f"OfType({self.type.__name__})"


@dataclasses.dataclass(frozen=True)
class WithTag:
    """Matches the states with this tag."""

    tag: str

    def __call__(self, path: Path, state: State) -> bool:
        return state.tag == self.tag

    def __repr__(self) -> str:
        return f"WithTag({self.tag!r})"


@dataclasses.dataclass(frozen=True)
class PathContains:
    """Matches the states with this key in their path: a field's name, a dictionary's key or
    a position in a sequence. `PathContains("layer1")` matches all states below `model.layer1`.
    """

    key: Hashable

    def __call__(self, path: Path, state: State) -> bool:
        return self.key in path

    def __repr__(self) -> str:
        return f"PathContains({self.key!r})"


@dataclasses.dataclass(frozen=True)
class IsState:
    """Matches the state of a handle. A handle given as a filter becomes one of these."""

    kind: type
    name: str | None
    path: Path | None  # of a handle

    def __call__(self, path: Path, state: State) -> bool:
        if type(state) is not self.kind:
            return False
        return state.name == self.name if self.path is None else path == self.path

    def __repr__(self) -> str:
        return f"IsState({self.name if self.path is None else dotted(self.path)!r})"


@dataclasses.dataclass(frozen=True)
class InPaths:
    """Matches the states at these paths. Iterated over, it gives them."""

    paths: tuple[Path, ...]

    @functools.cached_property
    def _set(self) -> frozenset[Path]:  # of a large population, a tuple would be searched for long
        return frozenset(self.paths)

    def __call__(self, path: Path, state: State) -> bool:
        return path in self._set

    def __contains__(self, path: object) -> bool:
        return path in self._set

    def __iter__(self) -> Iterator[Path]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return f"InPaths({', '.join(map(dotted, self.paths))})"


class _Several:
    predicates: tuple[Predicate, ...]

    def __init__(self, *filters: Filter):
        self.predicates = tuple(to_predicate(f) for f in filters)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.predicates == other.predicates  # pyright: ignore

    def __hash__(self) -> int:
        return hash((type(self), self.predicates))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.predicates))})"


def filter_key(predicate: Predicate, on_death: AnyType = None) -> Hashable:
    """What equal filters share. Functions of the user's are referred to weakly."""
    if isinstance(predicate, _Several):
        return type(predicate), tuple(filter_key(p, on_death) for p in predicate.predicates)
    if isinstance(predicate, _FILTERS):
        return type(predicate), predicate
    return by_identity(predicate, on_death)


class Any(_Several):
    """Matches what at least one of the filters matches."""

    def __call__(self, path: Path, state: AnyType) -> bool:
        return any(p(path, state) for p in self.predicates)


class All(_Several):
    """Matches what every one of the filters matches."""

    def __call__(self, path: Path, state: AnyType) -> bool:
        return all(p(path, state) for p in self.predicates)


class Not(_Several):
    """Matches what the filter does not match."""

    def __init__(self, filter: Filter, /):
        super().__init__(filter)

    def __call__(self, path: Path, state: AnyType) -> bool:
        return not self.predicates[0](path, state)


@dataclasses.dataclass(frozen=True)
class Everything:
    """Matches every state."""

    def __call__(self, path: Path, state: AnyType) -> bool:
        return True


@dataclasses.dataclass(frozen=True)
class Nothing:
    """Matches no state."""

    def __call__(self, path: Path, state: AnyType) -> bool:
        return False


_FILTERS = (OfType, WithTag, PathContains, IsState, InPaths, Any, All, Not, Everything, Nothing)


def to_predicate(filter: Filter) -> Predicate:
    """The function `(path, state) -> bool` that a filter stands for.

    **Arguments:**

    - `filter`: one of

        - a kind (`sm.ParamState`): [`statemap.OfType`][];
        - a string: [`statemap.WithTag`][];
        - `True` or `...`: every state; `False` or `None`: no state;
        - a State: the handle of a model, or a State with a name;
        - a list or tuple of filters: any of them;
        - a callable `(path, state) -> bool`, which all filters of statemap are. `path` is a
            tuple of keys, such as `("layers", 0, "weight")`.

    **Returns:**

    The predicate. It is hashable and equal to others of the same meaning, unless it is a
    function of yours, which is equal only to itself.

    **Raises:**

    `TypeError` if `filter` is none of these.

    ```python
    import statemap as sm

    assert sm.to_predicate("slow") == sm.WithTag("slow")
    assert sm.to_predicate([sm.ParamState, "slow"]) == sm.Any(sm.ParamState, "slow")
    ```
    """
    if filter is ... or filter is True:
        return Everything()
    if filter is None or filter is False:
        return Nothing()
    if isinstance(filter, str):
        return WithTag(filter)
    if isinstance(filter, type):
        if filter.__module__.startswith("statemap.compat"):
            raise TypeError(
                f"`{filter.__name__}` is a class of the shim, `statemap.compat`, and the states of "
                "a context are of the kinds of `statemap`.\n"
                "Wrong:  compat.ParamState\n"
                "Right:  sm.ParamState"
            )
        if filter in _FILTERS:  # `sm.Everything` for `sm.Everything()`
            raise TypeError(
                f"`{filter.__name__}` is a filter once called: `{filter.__name__}(...)`."
            )
        if (
            filter.__module__ == "builtins"
            or issubclass(filter, (eqx.Module, jax.Array))
            and (not issubclass(filter, State))
        ):
            raise TypeError(
                f"`{filter.__name__}` is no kind of State, and matches none.\n"
                "Wrong:  {0: LIF}\n"
                'Right:  {0: sm.ParamState}, or `sm.PathContains("v")` for a field'
            )
        return OfType(filter)
    if isinstance(filter, eqx.Module) and not isinstance(filter, State):
        raise TypeError(
            f"A model, `{type(filter).__name__}`, is no filter; its handles are.\n"
            "Wrong:  {0: model}\n"
            'Right:  {0: [model.v, model.w]}, or {0: sm.PathContains("layer")} for what is below a '
            "field, or {0: ...} for all states"
        )
    if isinstance(filter, State):
        if filter.handle is None and filter.name is None:
            raise TypeError(
                f"A {type(filter).__name__} that holds a value and has no name can't be told "
                "from others like it. Use it as a filter by its handle (the field of a model "
                "from `make_with_states`), by a `name=`, or with `PathContains`."
            )
        handle = filter.handle
        return IsState(type(filter), filter.name, None if handle is None else handle.path)
    if isinstance(filter, (list, tuple)):
        return Any(*filter)
    if callable(filter):
        return cast(Predicate, filter)
    raise TypeError(_no_filter(filter))


def _no_filter(filter: AnyType) -> str:
    return (
        f"{filter!r} is not a filter. A filter is a kind of State, a tag (a string), a bool, "
        "`...`, `None`, a handle, a list or tuple of filters, or a callable "
        "`(path, state) -> bool`; an axis goes before it: `{0: filter}`."
    )


def names_state(predicate: Predicate, path: Path, state: State) -> bool:
    """Whether a predicate that matches a `NonBatchState` means it by type, name or handle."""
    if isinstance(predicate, OfType):
        return issubclass(predicate.type, NonBatchState)
    if isinstance(predicate, PathContains):
        return predicate.key in (path[-1], state.name)
    if isinstance(predicate, (Any, All)):
        return any(p(path, state) and names_state(p, path, state) for p in predicate.predicates)
    return isinstance(predicate, (IsState, InPaths))


def is_definite(predicate: Predicate) -> bool:
    """Whether a filter names something, so that matching no state is likely to be a mistake."""
    if isinstance(predicate, Any):
        return all(map(is_definite, predicate.predicates))
    return isinstance(predicate, (WithTag, PathContains, IsState))


def wanted(predicate: Predicate) -> str:
    """What a definite filter names."""
    if isinstance(predicate, Any):
        return " ".join(map(wanted, predicate.predicates))
    if isinstance(predicate, WithTag):
        return predicate.tag
    if isinstance(predicate, PathContains):
        return str(predicate.key)
    return (
        dotted(predicate.path or (predicate.name or "",)) if isinstance(predicate, IsState) else ""
    )


def is_internal(predicate: Predicate) -> bool:
    """Whether a filter is none that a user wrote: that of a handle, or of `MemberAxes`."""
    if isinstance(predicate, _Several):
        return any(map(is_internal, predicate.predicates))
    return isinstance(predicate, (IsState, InPaths))


def show_filter(predicate: Predicate) -> str:
    """What messages call a filter."""
    if isinstance(predicate, Everything):
        return "..."
    if isinstance(predicate, _FILTERS):
        return repr(predicate)
    name = getattr(predicate, "__qualname__", type(predicate).__qualname__)
    return str(name).rpartition(".")[2]
