"""Filters, and the dictionaries that modules list their cells in. (After `brainstate.util`.)"""

from . import filter as filter
from ._flat import (
    flat_mapping as flat_mapping,
    FlattedDict as FlattedDict,
    nest_mapping as nest_mapping,
    NestedDict as NestedDict,
)
from .filter import (
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
