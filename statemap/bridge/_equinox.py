"""The bridge for stateful models of Equinox. Tried with Equinox 0.13.8."""

import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, overload, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

from .._equinox import index_of, is_emptied, is_index
from .._state import LongTermState, ParamState, State
from .._states import States
from .._values import describe, dotted, one_level, Path, short
from ._adopt import bridged, Kinds
from ._adopted import Adopted
from ._library import Library, Method, nodes_of


M = TypeVar("M")


@overload
def equinox(model: M, *, kinds: Kinds | None = None) -> tuple[Adopted[M], States]: ...


@overload
def equinox(
    model: M, state: eqx.nn.State, *, kinds: Kinds | None = None
) -> tuple[Adopted[tuple[M, eqx.nn.State]], States]: ...


def equinox(
    model: Any, state: Any = None, *, kinds: Kinds | None = None
) -> tuple[Adopted[Any], States]:
    """A model of [Equinox](https://docs.kidger.site/equinox) and its `eqx.nn.State` as a function
    of states.

    ```python
    import equinox as eqx, jax, jax.numpy as jnp
    import statemap as sm
    from statemap import bridge

    class Net(eqx.Module):
        linear: eqx.nn.Linear
        norm: eqx.nn.BatchNorm

        def __init__(self, key):
            self.linear = eqx.nn.Linear(3, 4, key=key)
            self.norm = eqx.nn.BatchNorm(4, axis_name="batch", mode="batch")

        def __call__(self, x, state):
            return self.norm(self.linear(x), state)

    net, states = bridge.equinox(*eqx.nn.make_with_state(Net)(jax.random.key(0)))
    out, states = sm.vmap2(net, axis_name="batch")(states, jnp.ones((8, 3)))
    assert out.shape == (8, 4) and states["norm.batch_counter"] == 1

    model, state = net.rebuild(states)  # as `make_with_state` gave them
    assert model.linear.weight.shape == (4, 3)
    ```

    This is for models that are written for `eqx.nn.State` and stay so; in a model of your own,
    [`statemap.declare`][] makes single layers take the context itself.

    Every array of the model becomes a state at its path, such as `layers.0.weight`: a `ParamState`
    if it holds floating-point numbers, else a `LongTermState`. Every `eqx.nn.StateIndex` becomes a
    `LongTermState` at the path of the index, with the tag `"StateIndex"`. What holds typed keys is
    a `RandomState`.

    **Arguments:**

    - `model`: an `eqx.Module`, or any pytree of arrays and layers.
    - `state`: its state, if it is a stateful model: that of `eqx.nn.make_with_state`.
    - `kinds`: other kinds: `{eqx.nn.StateIndex: sm.ShortTermState}`, or by the strings that paths
        begin with; or a function `(path, node) -> kind` of an array or an index, which may return
        None.

    **Returns:**

    `(net, states)`: an [`statemap.bridge.Adopted`][], and its context.
    `net(states, *args, **kwargs)` calls `model(*args, state, **kwargs)`, which returns
    `(out, state)`; without a state `model(*args, **kwargs)`, which returns its output alone. So do
    methods: `net.encode(states, x)` calls `model.encode(x, state)`. `net.rebuild(states)` is
    `(model, state)`, or the model.

    **Raises:**

    `TypeError` if `model` is a class, holds no array, or holds a `StateIndex` and came without a
    state; `ValueError` if the state is used up, or has no value for an index.
    """
    if isinstance(model, type) or isinstance(model, eqx.nn.State):
        raise TypeError(
            f"`bridge.equinox` takes a model of Equinox that is made, and was given {short(model)}."
            "\nWrong:  bridge.equinox(Net)\n"
            "Right:  bridge.equinox(*eqx.nn.make_with_state(Net)(key=key))"
        )
    name = type(model).__name__
    if state is None:
        for path, node in nodes_of(model, is_index)[0]:
            if is_index(node):
                raise TypeError(
                    f"`{name}` has a state, `{dotted(path)}`, and came without it.\n"
                    f"Wrong:  bridge.equinox({name}(...))\n"
                    f"Right:  bridge.equinox(*eqx.nn.make_with_state({name})(...))"
                )
        return bridged(_Model(type(model)), model, kinds, _kind, is_index)
    if not isinstance(state, eqx.nn.State):
        raise TypeError(
            f"The state of a model of Equinox is an `eqx.nn.State`, not {describe(state)}.\n"
            f"Right:  bridge.equinox(*eqx.nn.make_with_state({name})(...))"
        )
    container = _Container.of(model, state, name)
    return bridged(_Stateful(type(model)), container, kinds, _kind, is_index)


def _kind(path: Path, node: Any) -> type[State]:
    is_parameter = not is_index(node) and jnp.issubdtype(node.dtype, jnp.inexact)
    return ParamState if is_parameter else LongTermState


@dataclasses.dataclass(frozen=True)
class _Model(Library):
    cls: type

    @property
    def name(self) -> str:  # pyright: ignore
        return self.cls.__name__

    def has_method(self, name: str) -> bool:
        return callable(getattr(self.cls, name, None))

    def missing(self, name: str, paths: Sequence[Path]) -> Exception:
        # `eqx.nn.inference_mode` asks every node for it, and would leave this one as it is.
        if name == "inference" and any(path[-1] == name for path in paths):
            return TypeError(
                f"`{self.name}` is bridged, with its `inference` flags as they are. Set them in "
                "the model of Equinox.\n"
                "Wrong:  evaluate = eqx.nn.inference_mode(net)\n"
                "Right:  evaluate = net.method(lambda model, *args: "
                "eqx.nn.inference_mode(model)(*args))"
            )
        return super().missing(name, paths)


class _Stateful(_Model):
    def build(self, tree: Any) -> Any:
        return tree.model_and_state()

    def take(self, built: Any, tree: Any) -> Any:
        model, state = built
        return _Container.of(model, state, self.name, is_new=True)

    def call(
        self, tree: Any, method: Method, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any]:
        model, state = tree.model_and_state()
        fn = self.function(model, method)
        try:
            out = fn(*args, state, **kwargs)
        except TypeError as error:
            if not _takes(fn, (*args, state), kwargs):
                error.add_note(_PURE)
            raise
        is_pair = isinstance(out, tuple) and len(out) == 2
        if not is_pair or not isinstance(out[1], eqx.nn.State):
            raise TypeError(
                f"A call of `{self.name}` returns `(out, state)`, with the new `eqx.nn.State`, and "
                f"returned {short(out)}.\n{_PURE}"
            )
        return out[0], self.take((model, out[1]), tree)


_PURE = (
    "The state comes after the positional arguments of a model that was brought in with one. What "
    "has nothing to do with it:\n"
    'Wrong:  net.method("encode")(states, x)\n'
    "Right:  net.method(lambda model, x, state: (model.encode(x), state))(states, x)"
)


def _takes(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a function has a place for all of its arguments."""
    try:
        inspect.signature(fn).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # of what is written in C
        pass
    return True


class _Container:
    """A model whose indices hold today's values, as before `eqx.nn.make_with_state` took their
    initial ones out. So its leaves have the paths that they have in the model.
    """

    def __init__(self, model: Any, rest: list[Any], structure: Any):
        """**Arguments:**

        - `rest`: the leaves of the `eqx.nn.State` that are of no index of the model.
        - `structure`: that of the `eqx.nn.State`.
        """
        self.model, self.rest, self.structure = model, rest, structure

    def __reduce__(self) -> tuple:
        count = range(self.structure.num_leaves)
        return _unpickled, (self.model, self.rest, self.structure.unflatten(count))

    @staticmethod
    def of(model: Any, state: eqx.nn.State, name: str, is_new: bool = False) -> "_Container":
        """**Arguments:**

        - `is_new`: whether they are what a call returned, rather than what the user made.

        **Raises:**

        `ValueError` if the state is used up or has no value for an index of the model.
        """
        try:
            leaves, structure = jax.tree.flatten(state)
        except ValueError as error:
            raise ValueError(
                f"The `eqx.nn.State` of `{name}` is used up: it was written to, and what "
                "came of that goes on in its place.\n"
                "Wrong:  model(x, state); return x, state\n"
                "Right:  x, state = model(x, state); return x, state"
            ) from error
        places = list(_places(model))
        positions = structure.unflatten(range(len(leaves)))
        values, held = {}, set()
        for path, index in places:
            try:
                values[index.marker] = state.get(index)
            except KeyError:
                raise ValueError(
                    f"The `eqx.nn.State` of `{name}` has no value for its index `{dotted(path)}`. "
                    "Use the model and the state that `eqx.nn.make_with_state` returned together"
                    + ("." if not is_new else "; of a part, `return x, state.update(part)`.")
                ) from None
            held.update(jax.tree.leaves(positions.get(index)))
        rest = [x for i, x in enumerate(leaves) if i not in held]
        markers = {marker: marker for marker in values}
        if not rest and not all(isinstance(marker, str) for marker in markers):
            # Objects, which `eqx.nn.State(model)` leaves, differ in each model that is made.
            for path, index in reversed(places):
                if not isinstance(index.marker, str):
                    markers[index.marker] = f"statemap: {dotted(path)}"
            structure = jax.tree.structure(
                eqx.nn.State([index_of(_no_arrays(v), markers[m]) for m, v in values.items()])
            )
        seen = set()

        def fill(x: Any) -> Any:
            if not is_index(x):
                return x
            if x.marker in seen:  # an index at two places is one state, at the first
                return eqx.nn.delete_init_state(index_of(0, markers[x.marker]))
            seen.add(x.marker)
            return index_of(values[x.marker], markers[x.marker])

        return _Container(jax.tree.map(fill, model, is_leaf=is_index), rest, structure)

    def model_and_state(self) -> tuple[Any, eqx.nn.State]:
        positions = self.structure.unflatten(range(self.structure.num_leaves))
        new = {}
        for _, index in _places(self.model):
            if not is_emptied(index):
                at = jax.tree.leaves(positions.get(index))
                new.update(zip(at, jax.tree.leaves(index.init)))
        rest = iter(self.rest)
        leaves = [new[i] if i in new else next(rest) for i in range(self.structure.num_leaves)]
        return eqx.nn.delete_init_state(self.model), self.structure.unflatten(leaves)


def _unpickled(model: Any, rest: list[Any], state: eqx.nn.State) -> _Container:
    return _Container(model, rest, jax.tree.structure(state))


def _places(model: Any) -> Iterator[tuple[Path, eqx.nn.StateIndex]]:
    return ((path, node) for path, node in nodes_of(model, is_index)[0] if is_index(node))


def _no_arrays(value: Any) -> Any:
    return jax.tree.map(lambda x: 0, value)


def _flatten(container: _Container) -> tuple[Any, Any]:
    model, rest = container.model, container.rest
    children = one_level(model)
    if children is None:
        children, treedef = [(jax.tree_util.GetAttrKey("value"), model)], None
    else:
        treedef = jax.tree.structure(model, is_leaf=lambda x: x is not model)
    key = jax.tree_util.GetAttrKey("state")
    more = [(key, rest)] if rest else []
    return (*children, *more), (treedef, bool(rest), container.structure)


def _unflatten(aux: Any, children: Any) -> _Container:
    treedef, has_rest, structure = aux
    *own, rest = children if has_rest else (*children, [])
    return _Container(own[0] if treedef is None else treedef.unflatten(own), rest, structure)


jax.tree_util.register_pytree_with_keys(_Container, _flatten, _unflatten)
