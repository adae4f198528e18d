"""The installed brainstate, its layers, units and graph, on the shim's cells and transforms."""

import importlib
import types
from collections.abc import Mapping
from typing import Any

from .. import transform
from .._errors import BatchAxisError, TraceContextError
from ..transform import _gradient, _progress
from ..transform._policy import _Default
from ._modules import over
from ._patches import Patches


_installed: list[Patches] = []


def install() -> None:
    """What `compat.install(layers="brainstate")` does."""
    if _installed:
        return
    try:
        importlib.import_module("brainstate")
    except ModuleNotFoundError as error:
        if error.name != "brainstate":
            raise
        raise ImportError(
            '`install(layers="brainstate")` puts statemap under the installed brainstate, and none '
            "is installed: `pip install 'statemap[brainstate]'`."
        ) from error
    from . import _private

    _private.check()
    patches = Patches()
    try:
        _private.cells(patches)
        bs = _private.bs
        ours = {**_shared(bs.transform, _engine()), **_shared(bs.nn, over(bs.nn))}
        patches.replace(ours, "statemap")
        patches.set(_progress, "ProgressBar", bs.transform.ProgressBar)  # which needs no tqdm
        patches.set(_gradient, "explain", getattr(bs.transform, "debug_nan_if", None))
        for own, theirs in _private.errors(BatchAxisError, TraceContextError):
            patches.add_base(own, theirs)
        before = _Default.policy
        patches.call(lambda: transform.set_default_policy(before))
        transform.set_default_policy("auto")
    except BaseException:
        patches.undo()
        raise
    _installed.append(patches)


def uninstall() -> None:
    """brainstate is what it was."""
    while _installed:
        _installed.pop().undo()


def _engine() -> dict[str, Any]:
    return {name: x for name, x in vars(transform).items() if name != "ProgressBar"}


def _shared(theirs: Any, ours: Mapping[str, Any]) -> dict[int, tuple[Any, Any]]:
    """`(theirs, ours)` of all names that both have."""
    found = {}
    for name, new in ours.items():
        old = vars(theirs).get(name)
        if old is not None and not name.startswith("_") and not isinstance(new, types.ModuleType):
            found[id(old)] = old, new
    return found
