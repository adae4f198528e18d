"""Modules that hold cells, and populations of them. (After `brainstate.nn`.)"""

from typing import Any as _Any

from ._collective import (
    assign_state_values as assign_state_values,
    call_all_fns as call_all_fns,
    call_order as call_order,
    init_all_states as init_all_states,
    reset_all_states as reset_all_states,
    vmap_call_all_fns as vmap_call_all_fns,
    vmap_init_all_states as vmap_init_all_states,
    vmap_reset_all_states as vmap_reset_all_states,
)
from ._map import Map as Map
from ._module import ElementWiseBlock as ElementWiseBlock, Module as Module
from ._sequential import EnvironContext as EnvironContext, Sequential as Sequential
from ._vmap import Vmap as Vmap


def __getattr__(name: str) -> _Any:
    raise AttributeError(
        f"`statemap.compat.nn` has no `{name}`: it has modules and mapping, and of layers, "
        "activations and the like nothing. Write them as a `Module`; or, with the functional core "
        "(`import statemap`), take them from `equinox.nn` and `jax.nn`."
    )
