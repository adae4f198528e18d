"""`Vmap`: a module mapped over its inputs. (After `brainstate.nn.Vmap`.)"""

import weakref
from collections import defaultdict
from collections.abc import Hashable, Mapping
from typing import Any, ClassVar

from ..._filters import Filter
from .._cells import State
from ..transform import vmap2
from ._module import Module
from ._sequential import shown
from ._walk import Kept


class Vmap(Module):
    """A module mapped over its inputs. Its cells are shared by the lanes, but for those that
    `vmap_states` matches.

    ```python
    import jax.numpy as jnp
    from statemap.compat import nn, ParamState

    class Dot(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = ParamState(jnp.arange(3.0))

        def update(self, x):
            return x @ self.w.value

    assert nn.Vmap(Dot())(jnp.ones((5, 3))).shape == (5,)
    ```
    """

    graph_invisible_attrs: ClassVar[tuple[str, ...]] = ("_states", "_kept")

    def __init__(
        self,
        module: Any,
        in_axes: Any = 0,
        out_axes: Any = 0,
        vmap_states: Any = None,
        vmap_out_states: Any = None,
        axis_name: Hashable = None,
        axis_size: int | None = None,
    ):
        """**Arguments:**

        - `module`: the module.
        - `in_axes`, `out_axes`, `axis_name`, `axis_size`: as for `transform.vmap2`.
        - `vmap_states`, `vmap_out_states`: the cells with a value for each lane, going in and
            coming out: a filter (on axis 0), a dictionary from axes to filters, or one from
            filters to axes. They are looked for in the module, so that their paths are those of
            `module.states()`.
        """
        super().__init__()
        if not isinstance(module, Module):
            raise TypeError(f"`module` is a module, not {shown(module)}.")
        self.in_axes = in_axes
        self.out_axes = out_axes
        self.axis_name = axis_name
        self.axis_size = axis_size
        self.module = module
        self._states = vmap_states, vmap_out_states
        self._kept = Kept()

    def update(self, *args: Any, **kwargs: Any) -> Any:
        mapping = self._kept.entries.get("update")
        if mapping is None:
            ins, outs = (_state_axes(self.module, spec) for spec in self._states)
            mapping = self._kept.entries["update"] = vmap2(
                self.module,
                in_axes=self.in_axes,
                out_axes=self.out_axes,
                axis_name=self.axis_name,
                axis_size=self.axis_size,
                state_in_axes=ins,
                state_out_axes=outs,
                unexpected_out_state_mapping="raise",
            )
        return mapping(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": Kept()}  # copies have cells of their own


class _Within:
    """Matches the cells of a module that a filter matches at their paths in it."""

    def __init__(self, module: Module, filter: Filter):
        self.module = module
        self.filter = filter
        self.known: weakref.WeakKeyDictionary[State, bool] = weakref.WeakKeyDictionary()

    def __call__(self, path: Any, cell: State) -> bool:
        if cell not in self.known:  # one that was made since
            matching = set(self.module.states(self.filter).values())
            self.known.update({c: c in matching for c in self.module.states().values()})
        return self.known.setdefault(cell, False)

    def __repr__(self) -> str:
        return repr(self.filter)


def _state_axes(module: Module, spec: Any) -> dict[int | None, _Within] | None:
    if spec is None:
        return None
    if not isinstance(spec, Mapping):
        spec = {0: spec}
    elif not all(key is None or type(key) is int for key in spec):
        by_axis = defaultdict(list)
        for filter, axis in spec.items():
            by_axis[axis].append(filter)
        spec = by_axis
    return {axis: _Within(module, filter) for axis, filter in spec.items()}
