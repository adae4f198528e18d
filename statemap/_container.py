"""Containers: what a mapping takes as its states. A context, or any pytree with States in it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jaxtyping import PyTree

from ._axes import is_array
from ._exact import exact
from ._foreign import find_foreign, refuse_foreign
from ._jax import is_ref
from ._overlay import moved_of
from ._slots import intern_slots, Slot, Slots
from ._state import is_state, State, static_fields, with_fields
from ._states import make_states, States
from ._values import dotted, Path, refuse_recursive, short, to_path


class _Value(NamedTuple):
    """Stands in a frame for a State: its position, and what it was apart from its value."""

    position: int
    kind: type[State]
    static: tuple


class _Context(NamedTuple):
    """Stands in a frame for a context: its slots, and the position of the first of them."""

    slots: Slots
    start: int


class _Array(NamedTuple):
    """Stands in a frame for an array that is no state."""

    position: int


class Frame(NamedTuple):
    """A container without the values of its states and without its other arrays: hashable."""

    # A `ContextFrame` has the same methods.

    treedef: Any
    entries: tuple[Any, ...]
    paths: tuple[Path, ...]
    exactly: tuple[Any, ...]  # the entries, since Python has `1 == 1.0 == True`

    def fill(self, slots: Slots, values: Sequence[Any], arrays: tuple[Any, ...]) -> PyTree:
        """The container with these values and arrays."""
        leaves = []
        for entry in self.entries:
            if isinstance(entry, _Value):
                leaves.append(with_fields(slots.specs[entry.position], data=values[entry.position]))
            elif isinstance(entry, _Context):
                stop = entry.start + len(entry.slots.entries)
                leaves.append(make_states(entry.slots, tuple(values[entry.start : stop])))
            else:
                leaves.append(arrays[entry.position] if isinstance(entry, _Array) else entry)
        return jax.tree.unflatten(self.treedef, leaves)

    def read(
        self, slots: Slots, container: PyTree, arrays: tuple[Any, ...]
    ) -> tuple[Sequence[Any], frozenset[Path] | None]:
        """The values of a container that a function returned, and the paths of the states that a
        mapping in the function has moved; None where that is not known, of a container that is no
        context.

        **Raises:**

        `ValueError` if it is not the container that went in but for the values of its states.
        """
        leaves, treedef = jax.tree.flatten(container, is_leaf=_is_leaf)
        if treedef != self.treedef:
            raise ValueError(
                "The function returned states of another structure than it was given: "
                f"{treedef} instead of {self.treedef}. It returns all the states that it took."
            )
        values: list[Any] = []
        for path, entry, leaf in zip(self.paths, self.entries, leaves):
            where = dotted(path)
            if isinstance(entry, _Value):
                same = type(leaf) is entry.kind and not leaf.is_handle
                if not same or tuple(static_fields(leaf).items()) != entry.static:
                    raise ValueError(
                        f"The function returned {eqx.tree_pformat(leaf, struct_as_array=True)} "
                        f"for the {entry.kind.__name__} `{where}`. Replace a value with "
                        "`state.set(value)`, which keeps kind, name and tag."
                    )
                values.append(leaf.data)
            elif isinstance(entry, _Context):
                values.extend(read_context(entry.slots, leaf))
            elif isinstance(entry, _Array):
                if leaf is not arrays[entry.position]:
                    raise ValueError(
                        f"The function changed `{where}`, an array of its container that is no "
                        "State, so that the new value would be lost. Make it a State."
                    )
            elif leaf is not entry and exact(leaf) != exact(entry):
                raise ValueError(f"The function changed `{where}` from {entry!r} to {leaf!r}.")
        return tuple(values), None


class ContextFrame(NamedTuple):
    """The frame of a container that is just a context."""

    def fill(self, slots: Slots, values: Sequence[Any], arrays: tuple[Any, ...]) -> States:
        return make_states(slots, values)

    def read(
        self, slots: Slots, container: PyTree, arrays: tuple[Any, ...]
    ) -> tuple[Sequence[Any], frozenset[Path] | None]:
        values = read_context(slots, container)
        return values, moved_of(values)


_CONTEXT = ContextFrame()


def _is_leaf(x: Any) -> bool:
    return isinstance(x, (State, States))


def pack(container: PyTree) -> tuple[Slots, tuple[Any, ...], "AnyFrame", tuple[Any, ...]]:
    """Takes a container apart: slots, values, the frame, and the arrays that are no states."""
    if type(container) is States:
        return container._slots, tuple(container._values), _CONTEXT, ()
    refuse_recursive(container, "The container of the states")
    refuse_no_context(container)
    with_path, treedef = jax.tree_util.tree_flatten_with_path(container, is_leaf=_is_leaf)
    slots: list[Slot] = []
    values: list[Any] = []
    arrays: list[Any] = []
    entries: list[Any] = []
    for keys, leaf in with_path:
        path = to_path(keys)
        if isinstance(leaf, State) and not leaf.is_handle:
            static = tuple(static_fields(leaf).items())
            entries.append(_Value(len(slots), type(leaf), static))
            slots.append(Slot(path or ("state",), type(leaf), static, None, ()))
            values.append(leaf.data)
        elif isinstance(leaf, States):
            entries.append(_Context(leaf._slots, len(slots)))
            for slot in leaf._slots.entries:
                aliases = tuple((*path, *alias) for alias in slot.aliases)
                slots.append(slot._replace(path=(*path, *slot.path), aliases=aliases))
            values.extend(leaf._values)
        elif is_ref(leaf):
            raise TypeError(
                f"The container of the states holds a Ref, at `{dotted(path)}`. Make it a state, "
                "or give it as an argument."
            )
        elif is_array(leaf):
            entries.append(_Array(len(arrays)))
            arrays.append(leaf)
        else:
            entries.append(leaf)
    if with_path and not slots and not any(is_state(e) or isinstance(e, _Context) for e in entries):
        raise TypeError(
            "A mapping takes the states first, and its first argument, "
            f"{eqx.tree_pformat(container, struct_as_array=True)}, holds none.\n"
            "Wrong:  mapped(x)\n"
            "Right:  out, states = mapped(states, x)\n"
            "A function without states takes an empty context: `mapped(sm.States(), x)`."
        )
    paths = tuple(to_path(keys) for keys, _ in with_path)
    return (
        intern_slots(tuple(slots)),
        tuple(values),
        Frame(treedef, tuple(entries), paths, tuple(map(exact, entries))),
        tuple(arrays),
    )


def refuse_no_context(container: Any) -> None:
    """Refuses an object of another library, which keeps its states, in the place of a context."""
    refuse_foreign(
        find_foreign(container),
        "A mapping takes the states first, a context, and was given",
        "out, states = mapped(module, x)",
    )


AnyFrame = Frame | ContextFrame


def read_context(slots: Slots, returned: Any) -> Sequence[Any]:
    """The values of a context that a function returned in the place of one with these slots."""
    if not isinstance(returned, States):
        raise ValueError(
            f"The function was given a context and returned {short(returned)} in its place. It "
            "returns `(out, states)`, the context last."
        )
    if returned._slots is not slots:
        before, after = set(slots.names()), set(returned._slots.names())
        lost = ", ".join(f"`{n}`" for n in sorted(before - after))
        new = ", ".join(f"`{n}`" for n in sorted(after - before))
        what = (f" It lacks {lost}." if lost else "") + (f" It has {new} besides." if new else "")
        raise ValueError(
            "The function returned a context with other states than it was given."
            + (what or " Their paths are the same, their kinds, names or tags are not.")
            + " Return the context that came in, updated with `states.set(...)`; parts from "
            "`partition` are put together with `merge`."
        )
    return returned._values


def first_argument(args: tuple) -> Any:
    if not args:
        raise TypeError(
            "A mapping takes the states first.\n"
            "Wrong:  mapped(x=x)\n"
            "Right:  out, states = mapped(states, x=x)"
        )
    return args[0]


def refuse_unhashable(frame: AnyFrame, statics: tuple[Any, ...] | None) -> None:
    for leaf in (*(frame.entries if isinstance(frame, Frame) else ()), *(statics or ())):
        try:
            hash(leaf)
        except TypeError:
            raise TypeError(
                f"The argument {leaf!r} of type `{type(leaf).__name__}` is no array, so that it "
                "is static, and it is not hashable, which a static argument must be."
            ) from None
