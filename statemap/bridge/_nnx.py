"""The bridge for Flax NNX. Tried with flax 0.12.8."""

import dataclasses
from typing import Any, TypeVar

import jax
from flax import nnx as _nnx

from .._exact import exact
from .._state import LongTermState, ParamState, RandomState, State
from .._states import States
from .._values import dotted
from ._adopt import bridged, Kinds
from ._adopted import Adopted
from ._library import Library


M = TypeVar("M")

_KINDS: dict[Any, type[State]] = {
    _nnx.Param: ParamState,
    _nnx.BatchStat: LongTermState,
    _nnx.RngKey: RandomState,
    _nnx.RngCount: LongTermState,
}


def nnx(module: M, *, kinds: Kinds | None = None) -> tuple[Adopted[M], States]:
    """A module of [Flax NNX](https://flax.readthedocs.io) as a function of states.

    ```python
    from flax import nnx
    import jax, jax.numpy as jnp
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
    `nnx.RngKey` a `RandomState`, so that each lane draws numbers of its own, and any other a
    `LongTermState`.

    **Arguments:**

    - `module`: an `nnx.Module`, or another object of NNX such as an `nnx.Optimizer`. It stays as it
        is.
    - `kinds`: other kinds, by the class of variable, `{nnx.Cache: sm.ShortTermState}`; or a
        function `(path, variable) -> kind`, which may return None.

    **Returns:**

    `(model, states)`: an [`statemap.bridge.Adopted`][], and its context.

    **Raises:**

    `TypeError` if `module` is none of NNX's or holds no array.
    """
    if isinstance(module, type) or not isinstance(module, _nnx.Pytree):
        raise TypeError(
            f"`bridge.nnx` takes a module of Flax NNX that is made, and was given {module!r}.\n"
            "Wrong:  bridge.nnx(Net)\n"
            "Right:  bridge.nnx(Net(rngs=nnx.Rngs(0)))"
        )
    graphdef, state = _nnx.split(module)
    library = _Module(type(module), graphdef)
    return bridged(library, state, kinds, _KINDS, _is_variable, module)


@dataclasses.dataclass(frozen=True)
class _Module(Library):
    cls: type
    graphdef: Any

    @property
    def name(self) -> str:  # pyright: ignore
        return self.cls.__name__

    def build(self, tree: Any) -> Any:
        return _nnx.merge(self.graphdef, tree)

    def take(self, built: Any, tree: Any) -> Any:
        graphdef, state = _nnx.split(built)
        if graphdef != self.graphdef and jax.tree.structure(state) == jax.tree.structure(tree):
            self._refuse_static(built, self.build(tree))
        return state

    def has_method(self, name: str) -> bool:
        return callable(getattr(self.cls, name, None))

    def write(self, origin: Any, tree: Any) -> None:
        _nnx.update(origin, tree)

    def _refuse_static(self, built: Any, before: Any) -> None:
        modules = dict(_nnx.iter_modules(before))
        found = ["An attribute that is no variable"]
        for path, module in _nnx.iter_modules(built):
            own = vars(modules.get(path, before))
            for name, value in vars(module).items():
                is_static = not name.startswith("_") and not isinstance(value, _nnx.Pytree)
                if is_static and name in own and exact(own[name]) != exact(value):
                    shown = f"from {own[name]!r} to {value!r}"
                    found.insert(0, f"`{dotted((*path, name))}` was changed {shown}, which")
        raise ValueError(
            f"{found[0]} is static in a call of `{self.name}`, so that the change would be lost. "
            "Change it in the module, and bridge that again, which takes the same context; or in a "
            "view.\n"
            "Wrong:  model.method(lambda module, x: (module.eval(), module(x))[1])\n"
            "Right:  module.eval(); model, _ = bridge.nnx(module)"
        )


def _is_variable(x: Any) -> bool:
    return isinstance(x, _nnx.Variable)
