"""Slots: what a context knows of its states, their values aside."""

import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from ._errors import near, StateNotFoundError
from ._exact import exact
from ._filters import Predicate, show_filter
from ._pending import Pending
from ._rest import difference
from ._state import is_state, read, State, static_fields, with_fields, write
from ._values import describe, dotted, fit, Path, Struct, to_path


class Slot(NamedTuple):
    """What a context knows of one state, its value aside."""

    path: Path
    kind: type[State]
    static: tuple[tuple[str, Any], ...]  # the State's static fields
    model: str | None  # the fingerprint of the model that declares it
    aliases: tuple[Path, ...]  # where else in the model the same State is

    @property
    def name(self) -> str | None:
        return dict(self.static)["name"]

    def differs(self, other: "Slot") -> str:
        """A sentence about where the static parts of two slots of one kind differ, if they do."""
        found = self.difference(other, but=())
        if found is None or found[0] == "kind":
            return ""
        return " Its {} is {} in one and {} in the other.".format(*found)

    def difference(
        self, other: "Slot", but: Sequence[str] = ("name", "tag")
    ) -> tuple[str, str, str] | None:
        """What says that two slots are not for one state, in two contexts: what it is, and how
        either has it. A path, a model, a name and a tag only say how a state is found.
        """
        if self.kind is not other.kind:
            return "kind", self.kind.__name__, other.kind.__name__
        mine, theirs = dict(self.static), dict(other.static)
        for key in {**mine, **theirs}:
            x, y = mine.get(key), theirs.get(key)
            if key in but or exact(x) == exact(y):
                continue
            if key != "rest":
                return f"`{key}`", repr(x), repr(y)
            if x is None or y is None or x.treedef != y.treedef:
                shown = ["arrays alone" if z is None else repr(z) for z in (x, y)]
                return "structure", shown[0], shown[1]
            if found := difference(x.tree, y.tree):
                return f"`{found[0]}`", found[1], found[2]
        return None

    def show(self, value: Any) -> str:
        """The State that a value is here, its shapes alone."""
        state = with_fields(_spec(self), data=Struct(value).tree)
        return eqx.tree_pformat(state, struct_as_array=True, width=1000)


class Slots:
    """The slots of a context, in the order of their paths. Interned: equal ones are identical,
    so that comparing two contexts' structure costs nothing.
    """

    __slots__ = ("coded", "entries", "index", "specs", "__weakref__")

    def __init__(self, entries: tuple[Slot, ...]):
        self.entries = entries
        self.specs = tuple(_spec(slot) for slot in entries)
        self.coded = tuple(
            slot.kind.decode is not State.decode or spec.rest is not None
            for slot, spec in zip(entries, self.specs)
        )
        self.index: dict[Any, int] = {}
        for i, slot in enumerate(entries):
            for path in (slot.path, *slot.aliases):
                self.index[path] = i
                self.index.setdefault(dotted(path), i)
        for i, slot in enumerate(entries):
            if slot.name is not None:
                self.index.setdefault(slot.name, i)

    def __reduce__(self) -> tuple:
        return intern_slots, (self.entries,)

    def find(self, key: Any) -> int:
        """The position of a path, dotted path, name or handle."""
        found = self.index.get(key) if isinstance(key, (str, tuple)) else None
        if found is None:
            if isinstance(key, State):
                return self._find_handle(key)
            if isinstance(key, Pending):
                raise TypeError(key.unbound())
            if not isinstance(key, (str, tuple)):
                raise TypeError(
                    f"A context is asked for a handle, a path or a name, not {key!r} of type "
                    f"`{type(key).__name__}`."
                )
            shown = dotted(key) if isinstance(key, tuple) else key
            raise StateNotFoundError(f"No state `{shown}`.{near(shown, self.names())}")
        return found

    def _find_handle(self, state: State) -> int:
        handle = state.handle
        if handle is None:
            if state.name is not None:
                return self.find(state.name)
            raise TypeError(
                f"This {type(state).__name__} holds a value and has no name, so that a context "
                "can't tell it from others.\n"
                "Wrong:  states[counter]\n"
                'Right:  states["counter"], or states[model.counter] with the model that '
                "`make_with_states` returned, or a State made with `name=`."
            )
        found = self.index.get(handle.path)
        if found is None:
            shown = dotted(handle.path)
            raise StateNotFoundError(
                f"No state `{shown}`, which is what this handle of {owner(handle.model)} is "
                f"for.{near(shown, self.names())}"
            )
        slot = self.entries[found]
        mine, rest = state.rest, self.specs[found].rest
        same = mine is rest or mine == rest
        if slot.kind is not type(state) or slot.model != handle.model or not same:
            raise StateNotFoundError(
                f"The handle `{dotted(handle.path)}` is a {type(state).__name__} of "
                f"{owner(handle.model)}, while the context's state of that path is a "
                f"{slot.kind.__name__} of {owner(slot.model)}."
                f"{'' if same or mine is None else mine.differs(rest)} Use the model and the "
                "context that `make_with_states` returned together."
            )
        return found

    def decode(self, i: int, data: Any) -> Any:
        """The value that a user sees, from what is stored."""
        return read(self.specs[i], data) if self.coded[i] else data

    def encode(self, i: int, value: Any) -> Any:
        """What is stored, from a value that a user gives."""
        if not self.coded[i]:
            return value
        return write(self.specs[i], value, dotted(self.entries[i].path))

    def names(self) -> list[str]:
        return [dotted(slot.path) for slot in self.entries]

    def matching(
        self, predicate: Predicate, states: list[State], given_as: str = "filter"
    ) -> list[bool]:
        """Which of the slots a predicate matches, under any of their paths.

        **Arguments:**

        - `states`: from `self.states`.
        - `given_as`: what messages call the parameter that the predicate came from.

        **Raises:**

        `TypeError` if it returns no bool; what it raises itself gets a note.
        """
        return [
            any(_ask(predicate, p, state, given_as) for p in (slot.path, *slot.aliases))
            for slot, state in zip(self.entries, states)
        ]

    def first_matching(
        self, predicates: Sequence[Predicate], values: Sequence[Any]
    ) -> list[int | None]:
        """Of each slot, which of the predicates is the first that matches it."""
        found: list[int | None] = [None] * len(self.entries)
        states = self.states(values)
        for k, predicate in enumerate(predicates):
            matches = self.matching(predicate, states)
            found = [k if i is None and match else i for i, match in zip(found, matches)]
        return found

    def states(self, values: Sequence[Any]) -> list[State]:
        return [with_fields(spec, data=v) for spec, v in zip(self.specs, values)]


def _ask(predicate: Predicate, path: Path, state: State, given_as: str) -> bool:
    try:
        answer = predicate(path, state)
    except Exception as error:
        error.add_note(
            f"(Raised by the filter `{show_filter(predicate)}` in `{given_as}`, asked about the "
            f"state `{dotted(path)}`.)"
        )
        raise
    if isinstance(answer, (bool, np.bool_)) or answer is None:
        return bool(answer)
    raise TypeError(
        f"The filter `{show_filter(predicate)}` in `{given_as}` returned {describe(answer)} for "
        f"the state `{dotted(path)}`. A filter is `(path, state) -> bool`, and looks at the "
        "state's kind, name, tag and shape rather than at numbers."
    )


_interned: weakref.WeakValueDictionary[Any, Slots] = weakref.WeakValueDictionary()


_lock = threading.Lock()


def intern_slots(entries: tuple[Slot, ...]) -> Slots:
    """The one `Slots` of these entries."""
    key = _key(entries)
    try:
        found = _interned.get(key)
    except TypeError:
        raise TypeError(
            "The static fields of a State must be hashable, since they key what was compiled; "
            f"got {[dict(slot.static) for slot in entries]}."
        ) from None
    if found is None:
        with _lock:
            found = _interned.get(key)
            if found is None:
                found = _interned[key] = Slots(entries)
    return found


def _key(entries: tuple[Slot, ...]) -> Any:
    """What slots are one by: `1`, `1.0` and `True` in a path or a static field are different."""
    return tuple(
        (*slot, *(exact(x) for x in _doubtful(slot))) if _doubtful(slot) else slot
        for slot in entries
    )


def _doubtful(slot: Slot) -> list[Any]:
    """The parts of a slot that Python may have equal to others."""
    keys = [k for p in (slot.path, *slot.aliases) for k in p if type(k) is not str]
    return keys + [v for _, v in slot.static if v is not None and type(v) is not str]


def _spec(slot: Slot) -> State:
    spec = object.__new__(slot.kind)
    for key, value in (*slot.static, ("data", None), ("handle", None)):
        object.__setattr__(spec, key, value)
    return spec


def owner(model: str | None) -> str:
    return "no model" if model is None else f"the model `{model}`"


def path_order(path: Path) -> tuple:
    return tuple((0, k, "") if isinstance(k, int) else (1, 0, str(k)) for k in path)


def in_order(items: list[tuple[Slot, Any]]) -> list[tuple[Slot, Any]]:
    """Slots and their values in the order of their paths.

    **Raises:**

    `ValueError` if two have the same path or name, or paths that are written alike.
    """
    items = sorted(items, key=lambda item: path_order(item[0].path))
    owners: dict[str, Path] = {}
    written: dict[str, Path] = {}
    for slot, _ in items:
        text = dotted(slot.path)
        if text in written:
            if written[text] == slot.path and exact(written[text]) == exact(slot.path):
                raise ValueError(f"Two states have the path `{text}`.")
            raise ValueError(
                f"Two states have paths that are written alike, `{text}`: {written[text]!r} and "
                f"{slot.path!r}. Rename one of them."
            )
        written[text] = slot.path
    for slot, _ in items:
        if slot.name is not None:
            if slot.name in owners:
                raise ValueError(
                    f"Two states have the name {slot.name!r}: `{dotted(owners[slot.name])}` and "
                    f"`{dotted(slot.path)}`. A name is unique in its context."
                )
            owners[slot.name] = slot.path
    for slot, _ in items:
        other = owners.get(text := dotted(slot.path))
        if other is not None and other != slot.path:
            raise ValueError(
                f"The state `{dotted(other)}` has the name {text!r}, which is the path of another "
                "state."
            )
    return items


def collect(found: Iterable[tuple[Path, State]], model: str | None) -> list[tuple[Slot, Any]]:
    """The slots and values of States found at paths. A State at two paths is one slot."""
    places: dict[int, tuple[State, list[Path]]] = {}
    for path, state in found:
        places.setdefault(id(state), (state, []))[1].append(path)
    return [
        (Slot(ps[0], type(s), tuple(static_fields(s).items()), model, tuple(ps[1:])), s.data)
        for s, ps in places.values()
    ]


Pair = tuple[Slot, Any]


def merge_pairs(mine: Iterable[Pair], others: Iterable[Pair]) -> list[Pair]:
    """Slots and their values, with those of others: their values replace those that both have.

    **Raises:**

    `ValueError` if a state that both have is not the same one, or a value does not fit.
    """
    merged = {pair[0].path: pair for pair in mine}
    for slot, value in others:
        if slot.path in merged:
            path, (own, before) = dotted(slot.path), merged[slot.path]
            if _key((own,)) != _key((slot,)):
                raise ValueError(
                    f"Both contexts have a state `{path}`, but not the same one: a "
                    f"{own.kind.__name__} of {owner(own.model)} and a "
                    f"{slot.kind.__name__} of {owner(slot.model)}.{own.differs(slot)} To take "
                    "over the values by path: `states, report = states.load(other, strict=False)`."
                )
            value = fit(before, value, path)
        merged[slot.path] = (slot, value)
    return list(merged.values())


def find_states(tree: PyTree) -> list[tuple[Path, Any]]:
    """The leaves of a pytree with their paths, a State being a leaf."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_state)
    return [(to_path(keys) or ("state",), leaf) for keys, leaf in leaves]


def states_in(*trees: PyTree) -> list[tuple[Path, State]]:
    """The leaves of pytrees with their paths, each a State with a value.

    **Raises:**

    `TypeError` if one is something else.
    """
    found = [pair for tree in trees for pair in find_states(tree)]
    for path, leaf in found:
        if isinstance(leaf, Pending):
            raise TypeError(leaf.unbound())
        if not is_state(leaf) or leaf.is_handle:
            what = (
                "a handle, whose value is in the context of its model"
                if is_state(leaf)
                else f"of type `{type(leaf).__name__}`"
            )
            raise TypeError(
                f"`{dotted(path)}` is {what}; a context is made of States with values.\n"
                "Wrong:  sm.States(v=jnp.zeros(3))\n"
                "Right:  sm.States(v=sm.ShortTermState(jnp.zeros(3)))"
            )
    return found
