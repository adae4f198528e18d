"""Filters, and the dictionary that modules list their cells in. (After `brainstate.util`.)"""

from . import filter as filter
from ._flat import FlattedDict as FlattedDict
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
