"""brainstate's names and mutable states, on statemap's functional engine."""

from typing import Any as _Any

from . import environ as environ, random as random, transform as transform, util as util
from ._catch import (
    catch_new_states as catch_new_states,
    check_state_jax_tracer as check_state_jax_tracer,
    check_state_value_tree as check_state_value_tree,
    NewStateCatcher as NewStateCatcher,
    StateTraceStack as StateTraceStack,
)
from ._cells import (
    BatchState as BatchState,
    DelayState as DelayState,
    FakeState as FakeState,
    HiddenState as HiddenState,
    LongTermState as LongTermState,
    maybe_state as maybe_state,
    NonBatchState as NonBatchState,
    ParamState as ParamState,
    ShortTermState as ShortTermState,
    State as State,
)
from ._convert import from_functional as from_functional, to_functional as to_functional
from ._errors import (
    BatchAxisError as BatchAxisError,
    BrainStateError as BrainStateError,
    TraceContextError as TraceContextError,
)
from ._install import install as install, uninstall as uninstall


from . import nn as nn  # isort: skip  # built on all of the above


__version__ = "0.5.4"  # of brainstate, whose names these are
augment = compile = transform  # the names of `brainstate.transform` before version 0.2


def __getattr__(name: str) -> _Any:
    raise AttributeError(
        f'`statemap.compat` has no `{name}`. The page "Moving from brainstate" lists what the shim '
        "covers and what it does not: units, hooks, graphs, layers, and the tools for jaxprs."
    )
