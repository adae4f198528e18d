"""The context: an immutable mapping from the paths of states to their values."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, no_type_check, overload, TypeVar

import equinox as eqx
import jax
import wadler_lindig as wl
from jax.typing import ArrayLike

from ._bindings import bind_axes
from ._filters import Filter, to_predicate
from ._immutable import Immutable
from ._labels import label_values, Labels
from ._layers import fill_layer, handles, is_layer, spread, to_handle
from ._load import LoadReport, match_old, OldStates, read_old
from ._overlay import moved_of, replaced, Watched, with_moved
from ._slots import collect, in_order, intern_slots, merge_pairs, Slot, Slots, states_in
from ._state import is_state, State
from ._treescope import below, show_node
from ._values import dotted, fit, own, Path, PyTree


T = TypeVar("T")
L = TypeVar("L", bound=eqx.Module | list[Any] | dict[Any, Any])


def assemble(items: list[tuple[Slot, Any]]) -> "States":
    """A context from slots and their values, in canonical order."""
    items = in_order(items)
    slots = intern_slots(tuple(slot for slot, _ in items))
    return make_states(slots, tuple(value for _, value in items))


class States(Immutable):
    """A context: an immutable mapping from the paths of states to their values.

    A context is one pytree node, whose leaves are the arrays of the values. Every transform of
    JAX and Equinox takes it and returns it, and so do `jax.lax.scan` as a carry, optax,
    `eqx.tree_serialise_leaves` and pickle.

    ```python
    import jax.numpy as jnp
    import statemap as sm

    states = sm.States(counter=sm.ShortTermState(jnp.zeros(3)))
    new = states.set("counter", jnp.ones(3))
    assert new["counter"].sum() == 3
    assert states["counter"].sum() == 0  # the old context is as it was
    ```

    With a model, [`statemap.make_with_states`][] makes the context, and `states[model.v]` looks
    a value up by its handle. A path is a tuple of keys, `("layers", 0, "v")`; it may be written
    as a string, `"layers.0.v"`. A state with a name is found by its name, too.

    States are ordered by their paths.
    """

    __slots__ = ("_slots", "_values", "__weakref__")
    _values: Sequence[Any]  # a tuple, or an `Overlay`

    def __init__(self, tree: PyTree = None, /, **named: PyTree):
        """**Arguments:**

        - `tree`: a pytree whose leaves are States, such as a dictionary of States.
        - `named`: States, or pytrees of States, by name.

        **Raises:**

        `TypeError` if a leaf is no State, `ValueError` if two have the same path or name.
        """
        if is_state(tree):
            if tree.name is None:
                raise TypeError("A State given alone needs a `name=`, which becomes its path.")
            tree = {tree.name: tree}
        made = assemble(collect(states_in(tree, named), None))
        object.__setattr__(self, "_slots", made._slots)
        object.__setattr__(self, "_values", made._values)

    @overload
    def __getitem__(self, key: State[T]) -> T: ...  # pyright: ignore[reportOverlappingOverload]

    @overload
    def __getitem__(self, key: str | Path) -> Any: ...

    @overload
    def __getitem__(self, key: L) -> L: ...

    @no_type_check  # `bind_axes` is about the call that this is in
    def __getitem__(self, key: Any) -> Any:
        """The value of a state, by handle, path or name; or a layer whose arrays are states (see
        [`statemap.declare`][]), filled in.
        """
        key = to_handle(key)
        if is_layer(key):
            return fill_layer(key, self.__getitem__)
        i = self._slots.find(key)
        if type(self._values) is Watched and isinstance(key, State):
            self._values.refuse_population(i, key)
        value = self._slots.decode(i, own(self._values[i]))
        if type(key) is not str:  # a handle
            bind_axes(key, value)
        return value

    def get(self, key: Any) -> Any:
        """The same as `states[key]`: what stateful layers of Equinox call."""
        return self[key]

    @overload
    def set(self, key: State[jax.Array], value: ArrayLike) -> "States": ...

    @overload
    def set(self, key: State[T], value: T) -> "States": ...

    @overload
    def set(self, key: str | Path, value: Any) -> "States": ...

    @overload
    def set(self, key: L, value: L) -> "States": ...

    def set(self, key: Any, value: Any) -> "States":
        """A context with one value replaced.

        **Arguments:**

        - `key`: a handle, a path, a name, or a layer whose arrays are states.
        - `value`: the new value, of the structure, shape and dtype that the state has. A Python
            number takes the state's dtype, as in `jnp.add`.

        **Returns:**

        The new context; this one stays as it is.

        **Raises:**

        `KeyError` for a key that the context lacks, `ValueError` for a value that does not fit.
        """
        return self._with([(key, value)])

    def update(self, values: Mapping[Any, Any]) -> "States":
        """A context with several values replaced.

        **Arguments:**

        - `values`: new values by handle, path, name or layer, as for `set`.

        **Returns:**

        The new context. If one of the values does not fit, none is replaced.

        **Raises:**

        What `set` raises, and `TypeError` if `values` is no mapping.
        """
        if not isinstance(values, Mapping):
            raise TypeError(
                f"`update` takes new values by state, not a {type(values).__name__}.\n"
                "Wrong:  states.update([(model.v, v)])\n"
                "Right:  states.update({model.v: v})"
            )
        return self._with(values.items())

    def _with(self, values: Iterable[tuple[Any, Any]]) -> "States":
        slots, new = self._slots, {}
        for key, value in itertools.chain.from_iterable(itertools.starmap(spread, values)):
            i = slots.find(key)
            path = dotted(slots.entries[i].path)
            if isinstance(value, State):
                raise TypeError(
                    f"The state `{path}` was given a {type(value).__name__}, and takes its value.\n"
                    "Wrong:  states.set(key, sm.ShortTermState(x))\n"
                    "Right:  states.set(key, x)"
                )
            new[i] = own(fit(self._values[i], slots.encode(i, value), path))
        return make_states(slots, replaced(self._values, new))

    def select(self, filter: Filter) -> "States":
        """The part of the context that a filter matches.

        **Arguments:**

        - `filter`: any [filter](filters.md).

        **Returns:**

        A context with the states that match, which may be none.
        """
        return self._take(
            self._slots.matching(to_predicate(filter), self._slots.states(self._values))
        )

    def partition(self, *filters: Filter) -> tuple["States", ...]:
        """The context in parts, one for each filter. `merge` puts them together again.

        ```python
        import jax, jax.numpy as jnp
        import statemap as sm

        states = sm.States(w=sm.ParamState(jnp.ones(2)), v=sm.ShortTermState(jnp.ones(2)))

        def loss(states):
            return jnp.sum(states["w"] ** 2 * states["v"])

        params, rest = states.partition(sm.ParamState, ...)
        grads = jax.grad(lambda params: loss(rest.merge(params)))(params)
        assert grads["w"].tolist() == [2.0, 2.0] and "v" not in grads
        ```

        **Arguments:**

        - `filters`: a state goes to the first filter that matches it; `...` takes the rest.

        **Returns:**

        A tuple of contexts, as many as filters.

        **Raises:**

        `ValueError` if a state matches none of the filters.
        """
        found = self._slots.first_matching(list(map(to_predicate, filters)), self._values)
        if None in found:
            lost = [f"`{n}`" for n, k in zip(self._slots.names(), found) if k is None]
            raise ValueError(
                f"No filter matches {', '.join(lost)}, which would be lost. Let the last filter "
                "be `...` to take the rest, or use `select` to leave states out."
            )
        return tuple(self._take([k == part for k in found]) for part in range(len(filters)))

    def labels(self, labels: Labels, *, default: Any = None) -> "States":
        """A label for each state, as `optax.multi_transform` and `optax.masked` take them.

        ```python
        import jax.numpy as jnp
        import optax
        import statemap as sm

        params = sm.States(w=sm.ParamState(jnp.ones(2)), b=sm.ParamState(jnp.ones(2), tag="bias"))
        labels = params.labels({"bias": "slow", sm.ParamState: "fast"})
        assert labels["w"] == "fast" and labels["b"] == "slow"

        rates = {"fast": optax.adam(1e-2), "slow": optax.sgd(1e-4)}
        optimiser = optax.multi_transform(rates, labels)
        mask = params.labels({"bias": False, ...: True})
        decay = optax.masked(optax.add_decayed_weights(1e-4), mask)
        ```

        **Arguments:**

        - `labels`: a mapping from filters to labels, which are strings, numbers or bools; or
            pairs, `[(filter, label), ...]`, for filters that can't be keys, such as lists. A state
            gets the label of the first filter that matches it; `...` takes the rest.
        - `default`: the label of the states that no filter matches.

        **Returns:**

        A context with a label in the place of each array.

        **Raises:**

        `ValueError` if a state matches none of the filters and there is no `default`. A filter that
        names a tag, a path or a handle and matches no state is a warning.
        """
        values = label_values(self._slots, self._values, labels, default)
        return make_states(self._slots, values)

    def load(self, old: PyTree, *, strict: bool = True) -> tuple["States", LoadReport]:
        """This context with the values of another, that of a model which may have changed since.

        ```python
        import jax.numpy as jnp
        import statemap as sm

        old = sm.States(w=sm.ParamState(jnp.ones(2)), gone=sm.ParamState(jnp.ones(2)))
        states = sm.States(w=sm.ParamState(jnp.zeros(2)), new=sm.ParamState(jnp.zeros(2)))
        states, report = states.load(old, strict=False)
        assert states["w"].tolist() == [1.0, 1.0] and states["new"].tolist() == [0.0, 0.0]
        assert report.loaded == ("w",) and report.added == ("new",) and report.dropped == ("gone",)
        ```

        **Arguments:**

        - `old`: a context, whose states are found by path and have to be of the same kind,
            structure, shapes and dtypes. Or a pytree of arrays, such as the dictionary that
            `numpy.load`, safetensors or orbax give: its arrays are found by their dotted paths,
            `{"layers.0.w": ...}` or `{"layers": {"0": {"w": ...}}}`.
        - `strict`: whether every state has to be found and fit, and nothing may be left over.

        **Returns:**

        `(states, report)`: the context, whose other values are as they were, and a
        [`statemap.LoadReport`][]. Arrays keep the devices that they lie on.

        **Raises:**

        `ValueError` with `strict`, naming all that differs.
        """
        source = OldStates(old._pairs()) if isinstance(old, States) else read_old(old)
        new, report = match_old(self._slots, self._values, source)
        if strict:
            report.refuse_differences()
        return make_states(self._slots, replaced(self._values, new)), report

    def merge(self, other: "States") -> "States":
        """This context with the states of another: its values replace those that both have, and
        its other states are added.

        **Arguments:**

        - `other`: a context, such as a part from `partition`.

        **Returns:**

        The new context.

        **Raises:**

        `ValueError` if a state that both have differs in kind or model, or a value does not fit.
        """
        if not isinstance(other, States):
            raise TypeError(
                f"`merge` takes another context, not a {type(other).__name__}.\n"
                "Wrong:  states.merge({model.v: v})\n"
                "Right:  states.update({model.v: v}), or states.merge(part) with a part from "
                "`partition`"
            )
        merged = assemble(merge_pairs(self._pairs(), other._pairs()))
        moved = moved_of(self._values) | moved_of(other._values)
        return make_states(merged._slots, with_moved(merged._values, moved))

    def items(self) -> Iterator[tuple[Path, State]]:
        """The pairs `(path, State)`, each State with its value."""
        paths = (slot.path for slot in self._slots.entries)
        return iter(list(zip(paths, self._slots.states([own(v) for v in self._values]))))

    __iter__ = items

    def __contains__(self, key: Any) -> bool:
        try:
            return all(self._slots.find(handle) >= 0 for handle in handles(key))
        except (KeyError, TypeError):
            return False

    def __len__(self) -> int:
        return len(self._slots.entries)

    def __eq__(self, other: object) -> Any:
        """Whether the states and their values are the same: a bool, or a traced one."""
        if not isinstance(other, States):
            return NotImplemented
        mine, others = tuple(self._values), tuple(other._values)
        return self._slots is other._slots and eqx.tree_equal(mine, others)

    __hash__: ClassVar[None] = None  # pyright: ignore

    def __reduce__(self) -> tuple[Any, ...]:
        return make_states, (self._slots, tuple(self._values))

    def __pdoc__(self, **kwargs: Any) -> wl.AbstractDoc:
        named = zip(self._slots.names(), self._slots.states(self._values))
        return wl.bracketed(
            begin=wl.TextDoc("States("),
            docs=wl.named_objs(list(named), **kwargs),
            sep=wl.comma,
            end=wl.TextDoc(")"),
            indent=kwargs["indent"],
        )

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        parts = [
            (f"{name}=", state._node(subtree_renderer, None, below(path, f"[{name!r}]")))
            for name, state in zip(self._slots.names(), self._slots.states(self._values))
        ]
        return show_node(type(self), parts, path)

    def __repr__(self) -> str:
        return eqx.tree_pformat(self, struct_as_array=True)

    def _take(self, wanted: list[bool]) -> "States":
        slots = intern_slots(tuple(s for s, w in zip(self._slots.entries, wanted) if w))
        values = tuple(v for v, w in zip(self._values, wanted) if w)
        return make_states(slots, with_moved(values, moved_of(self._values)))

    def _pairs(self) -> list[tuple[Slot, Any]]:
        return list(zip(self._slots.entries, self._values))


def make_states(slots: Slots, values: Sequence[Any]) -> States:
    """A context from its two parts, past all checks."""
    self = _new(States)
    _set_slots(self, slots)
    _set_values(self, values)
    return self


# At every call of a mapping; `object.__setattr__` takes twice as long.
_new = object.__new__
_set_slots = States.__dict__["_slots"].__set__
_set_values = States.__dict__["_values"].__set__
