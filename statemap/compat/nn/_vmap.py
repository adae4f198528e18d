"""`Vmap`: a module mapped over its inputs. (After `brainstate.nn.Vmap`, whose arguments
[its page](https://brainstate.readthedocs.io) documents.)
"""

from collections import defaultdict
from collections.abc import Hashable, Mapping
from typing import Any, ClassVar

from ..transform import vmap2
from ._module import Module
from ._walk import is_module, shown


class VmapBehaviour:
    """What a [`statemap.compat.nn.Vmap`][] does, over any class of modules that it is put before
    as a base.
    """

    graph_invisible_attrs: ClassVar[tuple[str, ...]] = ("vmapped_fn",)

    def __init__(
        self, module: Any, in_axes: Any = 0, out_axes: Any = 0, vmap_states: Any = None,
        vmap_out_states: Any = None, axis_name: Hashable = None, axis_size: int | None = None,
    ):  # fmt: skip
        super().__init__()
        if not is_module(module):
            raise TypeError(f"`module` is a module, not {shown(module)}.")
        self.in_axes = in_axes
        self.out_axes = out_axes
        self.axis_name = axis_name
        self.axis_size = axis_size
        self.module = module
        self.vmapped_fn: Any = vmap2(
            module,
            in_axes=in_axes,
            out_axes=out_axes,
            axis_name=axis_name,
            axis_size=axis_size,
            state_in_axes=_filters_by_axis(vmap_states),
            state_out_axes=_filters_by_axis(vmap_out_states),
            unexpected_out_state_mapping="raise",
        )

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the module in every lane."""
        return self.vmapped_fn(*args, **kwargs)


class Vmap(VmapBehaviour, Module):
    """A module mapped over its inputs. Its cells are shared by the lanes, but for those that
    `vmap_states` matches: a filter (for axis 0), a dictionary from axes to filters, or one from
    filters to axes. Paths are those of `module.states()`.
    """


def _filters_by_axis(spec: Any) -> Any:
    """Dictionaries from filters to axes turned round."""
    if not isinstance(spec, Mapping) or all(k is None or type(k) is int for k in spec):
        return spec
    by_axis = defaultdict(list)
    for filter, axis in spec.items():
        by_axis[axis].append(filter)
    return dict(by_axis)
