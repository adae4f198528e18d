"""What is private in brainstate: all of it that the layers use, in one place.

`TRIED` has the versions, and `USED` the names. Besides these there are the entries `_value`,
`_level`, `_trace_state` (with its `jax_trace`) and `_name` of `vars(state)`, and that the methods
of a state get its value by `self._value` and note it by the `record_...` functions.
"""

import functools
import importlib
import operator
import threading
from typing import Any

import jax
import numpy as np

from ...bridge import _brainstate_private as private
from .. import _frames
from .._frames import Cell, local, peek, Stream, Unbatched
from ._patches import Patches


bs: Any = private.bs
TRIED = ("0.4.2", "0.5.0", "0.5.4", "0.6.0")
_state: Any = importlib.import_module("brainstate._state")


# Where: names. `tests/layers` and `install` say which of them a version lacks.
USED = {
    "_state": (
        *("TRACE_CONTEXT", "NonBatchState", "TreefyState.to_state", "record_state_init"),
        *("record_state_value_read", "record_state_value_write", "record_state_value_restore"),
        *("State._write_value", "State._check_tracer_write_outside_trace", "State.copy"),
        *("State.replace", "State.copy_from"),
    ),
    "_error": ("BatchAxisError", "TraceContextError"),
    "random._state": ("_format_key", "DEFAULT", "RandomState"),
    "environ": ("get", "all"),
    "graph": ("Node",),
}


def check() -> None:
    """**Raises:**

    `ImportError` if this version of brainstate lacks something.
    """
    for module, names in USED.items():
        for name in names:
            try:
                operator.attrgetter(name)(importlib.import_module(f"brainstate.{module}"))
            except (ImportError, AttributeError):
                raise ImportError(
                    f"brainstate {bs.__version__} has no `brainstate.{module}:{name}`, which its "
                    f"layers on statemap need. Tried with {', '.join(TRIED)}."
                ) from None


def cells(patches: Patches) -> None:
    """Makes brainstate's States cells of the shim.

    A state keeps its value in `vars(state)["_value"]`, where `copy`, pickle and the graph look
    for it. Its methods take `self._value`, which is now the value in the frame.
    """
    State, RandomState = _state.State, bs.random.RandomState
    patches.add_base(State, Cell)
    patches.add_base(RandomState, Stream)
    patches.add_base(_state.NonBatchState, Unbatched)
    patches.set(State, "_value", property(peek, _put))
    patches.set(State, "_trace", property(_trace, _set_trace))
    patches.set(State, "_guarded", False)  # as in brainstate, which has a check of its own
    patches.set(State, "_receive", _receive)
    patches.set(RandomState, "_held", property(_held, _hold))
    patches.set(State, "_write_value", _frames.write)
    patches.wrap(State, "_check_tracer_write_outside_trace", _outside_of_frames)
    for name in ("copy", "replace"):
        patches.wrap(State, name, _copying)
    patches.wrap(State, "copy_from", _copying_from)
    patches.wrap(_state.TreefyState, "to_state", _making)
    others = {}
    for name, new in (
        ("record_state_init", _making_note(_state.record_state_init)),
        ("record_state_value_read", _frames.read),
        ("record_state_value_write", _nothing),
        ("record_state_value_restore", _nothing),
    ):
        old = getattr(_state, name)
        others[id(old)] = old, new
    for old, new in zip((bs.environ.get, bs.environ.all), private.noted()):
        others[id(old)] = old, new
    patches.replace(others, "statemap")
    _one_stack(patches)
    patches.wrap(bs.random._state, "_KEY_RMW_LOCK", lambda lock: _Turn())  # not in all versions
    patches.add(_frames.streams, bs.random.DEFAULT)


class _Turn(threading.local):
    """In the place of the lock that brainstate's draws hold: the turn of the thread, which is not
    waited for where another thread may wait for what is traced here.
    """

    def __init__(self) -> None:
        self.before: list[Any] = []

    def __enter__(self) -> None:
        self.before.append(local.lock)
        _frames.take_turn()

    def __exit__(self, *_: Any) -> None:
        if local.lock is not self.before.pop():
            _frames.end_turn()


def _one_stack(patches: Patches) -> None:
    """What watches states watches cells: the stacks of each thread are those of the shim."""
    cls = type(_state.TRACE_CONTEXT)
    own = {"state_stack": "recorders", "new_state_catcher": "catchers", "tree_check": "tree_checks"}
    for theirs, ours in own.items():
        get = functools.partial(lambda ours, self: getattr(local, ours), ours)
        patches.set(cls, theirs, property(get, _nothing))
    patches.set(cls, "get_trace_stack_level", lambda self: len(local.frames))


def _nothing(*_: Any) -> None:
    """In the place of what the frames do."""


def _put(state: Any, value: Any) -> None:
    """Sets the value, without a note that it is written."""
    _frames.write(state, value, restore=True)


def _receive(state: Any, value: Any) -> None:
    state.value = value  # with hooks


def _trace(state: Any) -> Any:
    return state._trace_state.jax_trace


def _set_trace(state: Any, trace: Any) -> None:
    del trace  # always the present one
    vars(state)["_trace_state"] = type(state._trace_state)()


def _held(state: Any) -> Any:
    """A random state may hold the words of a key, until it is first looked at."""
    value = vars(state)["_value"]
    if isinstance(value, np.ndarray):
        with jax.ensure_compile_time_eval():
            value = vars(state)["_value"] = bs.random._state._format_key(value)
    return value


def _hold(state: Any, value: Any) -> None:
    vars(state)["_value"] = value


def _outside_of_frames(check: Any) -> Any:
    def checked(self: Any, value: Any) -> None:
        if not local.frames:
            check(self, value)

    return checked


def _making(make: Any) -> Any:
    @functools.wraps(make)
    def making(*args: Any, **kwargs: Any) -> Any:
        new = make(*args, **kwargs)
        new._born()
        return new

    return making


def _making_note(note: Any) -> Any:
    def noting(state: Any) -> None:
        state._born()
        note(state)

    return noting


def _copying(copy: Any) -> Any:
    @functools.wraps(copy)
    def copying(self: Any, *args: Any, **kwargs: Any) -> Any:
        new = copy(self, *args, **kwargs)
        if vars(new)["_value"] is vars(self)["_value"]:
            vars(new)["_value"] = peek(self)
        new._born()
        return new

    return copying


def _copying_from(copy: Any) -> Any:
    @functools.wraps(copy)
    def copying(self: Any, other: Any) -> None:
        if type(self) is not type(other) or self is other:
            return copy(self, other)
        held, value = vars(self)["_value"], other.value
        copy(self, other)
        vars(self)["_value"] = held
        self._write_value(value)

    return copying


def errors(*own: type) -> list[tuple[type, type]]:
    """Our errors, each with that of brainstate of the same name."""
    module = importlib.import_module("brainstate._error")
    return [(cls, getattr(module, cls.__name__)) for cls in own]
