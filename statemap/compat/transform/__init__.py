"""Transforms of functions that use cells. (After `brainstate.transform`.)"""

from typing import Any as _Any

from ._function import make_jaxpr as make_jaxpr, StatefulFunction as StatefulFunction
from ._grad import (
    fwd_grad as fwd_grad,
    grad as grad,
    hessian as hessian,
    jacfwd as jacfwd,
    jacobian as jacobian,
    jacrev as jacrev,
    jvp as jvp,
    vector_grad as vector_grad,
    vjp as vjp,
)
from ._gradient import GradientTransform as GradientTransform
from ._jit import jit as jit, JittedFunction as JittedFunction
from ._loops import (
    bounded_while_loop as bounded_while_loop,
    checkpointed_for_loop as checkpointed_for_loop,
    checkpointed_scan as checkpointed_scan,
    cond as cond,
    for_loop as for_loop,
    ifelse as ifelse,
    scan as scan,
    switch as switch,
    while_loop as while_loop,
)
from ._mapping import StatefulMapping as StatefulMapping
from ._maps import pmap2 as pmap2, vmap as vmap, vmap2 as vmap2
from ._new_states import (
    map as map,
    pmap2_new_states as pmap2_new_states,
    vmap2_new_states as vmap2_new_states,
    vmap_new_states as vmap_new_states,
)
from ._policy import set_default_policy as set_default_policy
from ._progress import ProgressBar as ProgressBar
from ._shapes import (
    checkpoint as checkpoint,
    eval_shape as eval_shape,
    remat as remat,
    shard_map as shard_map,
)


def __getattr__(name: str) -> _Any:
    raise AttributeError(
        f'`statemap.compat.transform` has no `{name}`. The page "Moving from brainstate" lists '
        "what the shim covers."
    )
