"""State-aware vectorisation for JAX: pure, typed, fast."""

from importlib.metadata import version as _version

from . import _node as _node, random as random
from ._errors import (
    BatchAxisError as BatchAxisError,
    DonatedStatesError as DonatedStatesError,
    StateNotFoundError as StateNotFoundError,
)
from ._fields import field as field
from ._filters import (
    All as All,
    Any as Any,
    Everything as Everything,
    Not as Not,
    Nothing as Nothing,
    OfType as OfType,
    PathContains as PathContains,
    to_predicate as to_predicate,
    WithTag as WithTag,
)
from ._gather import (
    broadcast as broadcast,
    concatenate as concatenate,
    stack as stack,
    unstack as unstack,
)
from ._init import vmap2_new_states as vmap2_new_states
from ._layers import declare as declare
from ._load import LoadReport as LoadReport
from ._make import make_with_states as make_with_states
from ._map import Map as Map
from ._mapping import StatefulMapping as StatefulMapping
from ._members import MemberAxes as MemberAxes
from ._plan import Plan as Plan
from ._pmap import pmap2 as pmap2, pmap2_new_states as pmap2_new_states
from ._rules import Reduce as Reduce, Restore as Restore
from ._scan import scan as scan
from ._state import (
    BatchState as BatchState,
    HiddenState as HiddenState,
    LongTermState as LongTermState,
    NonBatchState as NonBatchState,
    ParamState as ParamState,
    RandomState as RandomState,
    ShortTermState as ShortTermState,
    State as State,
)
from ._states import States as States
from ._verbs import lane as lane, put as put, reseed as reseed, where as where
from ._vmap import vmap2 as vmap2


__version__ = _version("statemap")
