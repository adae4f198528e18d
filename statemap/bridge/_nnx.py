"""The bridge for Flax NNX. Tried with flax 0.12.8."""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.core
import numpy as np
from flax import nnx as _nnx

from .._exact import PLAIN
from .._pickle import name_of
from .._plain import changes_in_place, contents, copied
from .._rest import static_key
from .._state import BatchState, LongTermState, ParamState, RandomState, State
from .._states import States
from .._values import dotted, Path
from ._adopt import bridged, Kinds
from ._adopted import Adopted
from ._library import Library, nodes_of


M = TypeVar("M")

_KINDS: dict[Any, type[State]] = {
    _nnx.Param: ParamState,
    _nnx.BatchStat: BatchState,
    _nnx.RngKey: RandomState,
    _nnx.RngCount: LongTermState,
}


def nnx(module: M, *, kinds: Kinds | None = None) -> tuple[Adopted[M], States]:
    """A module of [Flax NNX](https://flax.readthedocs.io) as a function of states.

    ```python
    from flax import nnx
    import jax.numpy as jnp
    import statemap as sm
    from statemap import bridge

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(3, 4, rngs=rngs)
            self.norm = nnx.BatchNorm(4, axis_name="batch", rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.dropout(self.norm(self.linear(x[None])))[0]

    module = Net(nnx.Rngs(0))
    net, states = bridge.nnx(module)
    out, states = sm.vmap2(net, axis_name="batch")(states, jnp.ones((8, 3)))
    assert out.shape == (8, 4) and states["norm.mean"].shape == (4,)

    net.write_back(states)
    assert module.norm.mean[...].tolist() == states["norm.mean"].tolist()
    ```

    Every `nnx.Variable` becomes a state at its path, such as `layers.0.kernel`, with the name of
    its class as its tag: `sm.WithTag("BatchStat")`. An `nnx.Param` is a `ParamState`, an
    `nnx.BatchStat` a `BatchState` (as brainstate has them), an `nnx.RngKey` a `RandomState`, so
    that each lane draws numbers of its own, and any other a `LongTermState`.

    **Arguments:**

    - `module`: an `nnx.Module`, or another object of NNX such as an `nnx.Optimizer`. It stays as it
        is.
    - `kinds`: other kinds, by the class of variable, `{nnx.Cache: sm.ShortTermState}`; or a
        function `(path, variable) -> kind`, which may return None.

    **Returns:**

    `(model, states)`: an [`statemap.bridge.Adopted`][], and its context.

    **Raises:**

    `TypeError` if `module` is none of NNX's, holds no array, or has variables that are references
    (`ref=True`, `hijax=True`).
    """
    if isinstance(module, type) or not isinstance(module, _nnx.Pytree):
        raise TypeError(
            f"`bridge.nnx` takes a module of Flax NNX that is made, and was given {module!r}.\n"
            "Wrong:  bridge.nnx(Net)\n"
            "Right:  bridge.nnx(Net(rngs=nnx.Rngs(0)))"
        )
    _declare_arrays(module)
    graphdef, state = _nnx.split(module)
    for path, variable in nodes_of(state, _is_variable)[0]:
        said = variable.get_metadata() if _is_variable(variable) else {}
        if said.get("ref") or said.get("hijax"):
            raise TypeError(
                f"`{dotted(path)}` of `{type(module).__name__}` is mutable by itself "
                f"({'`ref=True`' if said.get('ref') else '`hijax=True`'}), and no array that a "
                "context could hold.\n"
                "Wrong:  bridge.nnx(module)\n"
                "Right:  bridge.nnx(nnx.with_vars(module, ref=False, hijax=False))"
            )
    attributes = _attributes(module)
    if any(changes_in_place(x.value, _DATA) for x in attributes.values()):
        # A graphdef holds the very lists of the module, which may be changed later.
        graphdef, _ = _nnx.split(_with_copies(_nnx.merge(graphdef, state)))
    library = _Module(type(module), graphdef, attributes)
    return bridged(library, state, kinds, _KINDS, _is_variable, module)


@dataclasses.dataclass(frozen=True)
class _Module(Library):
    cls: type
    graphdef: Any
    attributes: Any  # what is static in it; NNX has `1`, `1.0` and `True` equal

    @property
    def name(self) -> str:  # pyright: ignore
        return self.cls.__name__

    def build(self, tree: Any) -> Any:
        return _with_copies(_nnx.merge(self.graphdef, tree))

    def take(self, built: Any, tree: Any) -> Any:
        graphdef, state = _nnx.split(built)
        if jax.tree.structure(state) == jax.tree.structure(tree):
            attributes = _attributes(built)
            if graphdef != self.graphdef or attributes != self.attributes:
                self._refuse_static(attributes, built)
        return state

    def has_method(self, name: str) -> bool:
        return callable(getattr(self.cls, name, None))

    def current(self, origin: Any, tree: Any) -> Any:
        return _nnx.state(origin)

    def write(self, origin: Any, tree: Any) -> None:
        _nnx.update(origin, tree)

    def _refuse_static(self, now: Any, built: Any) -> None:
        then = self.attributes
        nodes = ((path, x) for path, x in _nnx.iter_graph(built) if isinstance(x, _nnx.Pytree))
        present = {(*path, name) for path, x in nodes for name in vars(x)}
        found = [
            f"`{dotted(path)}` was changed from {then[path].value!r} to {now[path].value!r}, which"
            for path in now
            if path in then and then[path] != now[path]
        ]
        found += [f"`{dotted(path)}` was added, which" for path in now if path not in then]
        found += [
            f"`{dotted(path)}` was "
            + ("changed to what holds arrays, which" if path in present else "taken away, which")
            for path in then
            if path not in now
        ]
        found.append(
            "What is no array of a variable, an attribute or its metadata, was changed, and"
        )
        raise ValueError(
            f"{found[0]} is static in a call of `{self.name}`, so that the change would be lost. "
            "Change it in the module, and bridge that again, which takes the same context; or in a "
            "view.\n"
            "Wrong:  model.method(lambda module, x: (module.eval(), module(x))[1])\n"
            "Right:  module.eval(); model, _ = bridge.nnx(module)\n"
            "Right:  model.method(lambda module, x: nnx.view(module, deterministic=True)(x))"
        )


def _declare_arrays(module: Any) -> None:
    """Makes arrays of a trace, in a module that is made in lanes, data of it. NNX (0.12.8, 0.12.12)
    knows arrays by their class, which that of a tracer is not, and would have them static.

    **Raises:**

    `TypeError` for one in a list, tuple or dictionary, which is static.
    """
    nodes = [(path, x) for path, x in _nnx.iter_graph(module) if isinstance(x, _nnx.Pytree)]
    attributes = [(path, x, name, value) for path, x in nodes for name, value in vars(x).items()]
    for _, node, name, value in attributes:
        if isinstance(value, jax.core.Tracer):
            setattr(node, name, _nnx.data(value))
    if any(_tracers(value) for *_, value in attributes if isinstance(value, (list, tuple, dict))):
        data = {id(x) for x in _tracers(_nnx.state(module))}
        for path, _, name, value in attributes:
            if isinstance(value, (list, tuple, dict)):
                # a container that is declared to be data, as an optimizer's, may hold what it likes
                if any(id(x) not in data for x in _tracers(value)):
                    where = dotted((*path, name))
                    raise TypeError(
                        f"`{where}` of `{type(module).__name__}` is a {type(value).__name__} with "
                        "arrays in it, which is static in NNX, and the arrays differ from lane to "
                        "lane.\n"
                        f"Wrong:  self.{name} = [jnp.zeros(3)]\n"
                        f"Right:  self.{name} = nnx.data([jnp.zeros(3)])"
                    )


def _tracers(tree: Any) -> list[Any]:
    return [x for x in jax.tree.leaves(tree) if isinstance(x, jax.core.Tracer)]


class _Exact:
    """A static attribute, and what it is compared by."""

    def __init__(self, value: Any):
        is_plain = not changes_in_place(value, _DATA)
        self.value = value if is_plain else copied(value, {})
        self.key = static_key(value) if is_plain else contents(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Exact) and self.key == other.key

    def __reduce__(self) -> tuple:
        return _Exact, (self.value,)

    def __repr__(self) -> str:  # which tells compiled functions apart, too
        return name_of(self.value)


def _attributes(module: Any) -> dict[Path, _Exact]:
    """The attributes of the nodes of a module that are static."""
    nodes = ((path, x) for path, x in _nnx.iter_graph(module) if isinstance(x, _nnx.Pytree))
    return {
        (*path, name): _Exact(value)
        for path, node in nodes
        for name, value in vars(node).items()
        if not name.startswith("_pytree__") and (_is_plain(value) or changes_in_place(value, _DATA))
    }


def _with_copies(module: Any) -> Any:
    """A module with lists, dictionaries and the like of its own, where they are static: what a call
    writes to them is seen then, and is not in what the next call starts from.
    """
    memo: dict[int, Any] = {}
    for _, node in _nnx.iter_graph(module):
        if isinstance(node, _nnx.Pytree):
            for name, value in list(vars(node).items()):
                if not name.startswith("_pytree__") and changes_in_place(value, _DATA):
                    vars(node)[name] = copied(value, memo)
    return module


# What is no static attribute of a module, nor in one.
_DATA = (_nnx.Pytree, _nnx.Variable, jax.Array, np.ndarray)


def _is_plain(x: Any) -> bool:
    if isinstance(x, tuple):
        return all(map(_is_plain, x))
    is_node = isinstance(x, _nnx.Pytree | _nnx.Variable)
    return x is None or isinstance(x, PLAIN) or callable(x) and not is_node


def _is_variable(x: Any) -> bool:
    return isinstance(x, _nnx.Variable)
