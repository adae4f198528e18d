"""Which states of a population hold a value for each member, and on which axis."""

from collections.abc import Iterator, Mapping
from typing import Any

from ._filters import InPaths
from ._rules import Rule
from ._state_axes import Axis
from ._states import make_states, States
from ._treescope import show_node
from ._values import dotted, Path


# Its keys are axes; as a mapping it goes into a dictionary beside rules, too.
class MemberAxes(Mapping[Axis | Rule, InPaths]):
    """Which states of a population hold a value for each member, and on which axis: what
    [`statemap.vmap2_new_states`][] returns last.

    It is a mapping from axes to filters, so that it is given as it is to `state_in_axes` and
    `state_out_axes`; each filter holds the paths of its states. `axes.tree(states)` is the same
    as a pytree of axes, for `jax.vmap` and `equinox.filter_vmap`.

    ```python
    import jax, jax.numpy as jnp
    import statemap as sm

    def make():
        return {"v": sm.ShortTermState(jnp.zeros(3)), "t": sm.NonBatchState(0.0)}

    model, states, axes = sm.vmap2_new_states(make, {}, axis_size=5)
    assert list(axes[0]) == [("v",)] and list(axes[None]) == [("t",)]

    totals = jax.vmap(lambda states: states["v"].sum(), in_axes=(axes.tree(states),))(states)
    assert totals.shape == (5,)
    ```
    """

    def __init__(self, axes: Mapping[Path, Axis]):
        """**Arguments:**

        - `axes`: the axis of each state, by path; `None` for a state that all members share.
        """
        self._by_path = dict(axes)
        order = sorted(set(self._by_path.values()), key=lambda a: (a is None, a or 0))
        self._by_axis = {
            axis: InPaths(tuple(p for p, a in self._by_path.items() if a == axis)) for axis in order
        }

    def __getitem__(self, axis: Axis | Rule) -> InPaths:
        return self._by_axis[axis]  # pyright: ignore

    def __iter__(self) -> Iterator[Axis]:
        return iter(self._by_axis)

    def __len__(self) -> int:
        return len(self._by_axis)

    def __hash__(self) -> int:
        return hash(frozenset(self._by_path.items()))

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        shown = {axis: ", ".join(map(dotted, paths)) for axis, paths in self._by_axis.items()}
        return show_node(type(self), [(f"{a}: ", f"[{x}]") for a, x in shown.items()], path)

    def __repr__(self) -> str:
        shown = (
            f"{axis}: [{', '.join(map(dotted, paths))}]" for axis, paths in self._by_axis.items()
        )
        return f"{type(self).__name__}({{{', '.join(shown)}}})"

    def tree(self, states: States) -> States:
        """The axis of each state of a context, in the place of its value.

        **Arguments:**

        - `states`: the context, or a part of it. States that these axes do not list get `None`.
        """
        found = (self._by_path.get(slot.path) for slot in states._slots.entries)
        return make_states(states._slots, tuple(found))
