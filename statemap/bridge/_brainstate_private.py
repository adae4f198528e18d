"""What is private in brainstate: all of it that the bridge uses, in one place.

Tried with brainstate 0.5.4 and 0.6.0; `tests/bridge/test_brainstate.py` fails by name when one
changes.

- `random._state._KEY_RMW_LOCK`: what brainstate itself holds while a stream moves on. Held by a
    trace, no other thread draws from `random.DEFAULT` while that has a tracer in it.
- `vars(state)`: `_value`, `_level` (of the stack of traces, for which there is a setter, too),
    `_trace_state`, `_hooks_manager`, `_source_info`, `_been_writen`, and `_backup` of a
    `RandomState`. All others are the state's own metadata.
- `environ.get` and `environ.all`, which are replaced while a model runs, to see which settings it
    reads: brainstate's own modules call them as attributes of `environ`.
- `transform._error_if._err_jit_true_branch`, replaced as well: it is how brainstate checks what it
    is given, the probability of a dropout, say, and has an effect that comes in an order, which
    lanes on several devices can't have.
- `nn.Param._cache_valid`.
"""

import contextlib
import functools
import importlib
import threading
from collections.abc import Iterator
from typing import Any

import jax

from .._settings import note, register


# Not by name: type checkers run without it, and know little of it.
bs: Any = importlib.import_module("brainstate")
if bs.__name__.startswith("statemap."):
    raise ImportError(
        "`brainstate` is the shim here, after `compat.install()`, whose modules need no bridge: "
        "`step, states = compat.to_functional(module)`."
    )
unit: Any = importlib.import_module("brainunit")
DEFAULT: Any = bs.random.DEFAULT
NonBatchState: Any = bs._state.NonBatchState  # public nowhere
LOCK: Any = getattr(bs.random._state, "_KEY_RMW_LOCK", None) or threading.RLock()
_OF_A_TRACE = frozenset(("_value", "_level", "_trace_state", "_been_writen"))
_OF_ONE_STATE = frozenset(("_hooks_manager", "_source_info", "_backup"))


def value_of(state: Any) -> Any:
    """The value of a state. A `RandomState` may hold a seed that becomes a key when it is first
    looked at: an array, also in a trace, where it would be a tracer that stays.
    """
    with jax.ensure_compile_time_eval():
        return state.value


def metadata(state: Any) -> dict[str, Any]:
    """What a state has besides its value and what is of no concern to a copy."""
    hidden = _OF_A_TRACE | _OF_ONE_STATE
    return {k: v for k, v in vars(state).items() if k not in hidden}


def hooks(state: Any) -> Any:
    """The hooks of a state; None if it has none."""
    return state.hooks if state.has_hooks() else None


def backup(state: Any) -> Any:
    """The key that was laid aside, of a `RandomState`."""
    return getattr(state, "_backup", None)


def twin(state: Any, value: Any) -> Any:
    """A state like another, made in the trace that is going on. It shares its hooks."""
    ref = bs.TreefyState(type(state), value, **{**metadata(state), "_been_writen": False})
    ref._source_info = vars(state)["_source_info"]
    ref._hooks_manager = None
    new = ref.to_state()
    vars(new)["_hooks_manager"] = hooks(state) or type(state.hooks)()
    if new.tag is not None:
        vars(new)["tag"] = set(new.tag)
    if isinstance(new, bs.random.RandomState):
        vars(new)["_backup"] = None
    return new


def emptied(state: Any) -> Any:
    """What stays of a state when its value goes, to make others like it."""
    new = twin(state, None)
    del vars(new)["_trace_state"]
    return new


def has_cache(node: Any) -> bool:
    """Whether a parameter keeps its transformed value, whatever becomes of the value."""
    return isinstance(node, bs.nn.Param) and bool(node._cache_valid)


@contextlib.contextmanager
def stream(key: Any) -> Iterator[None]:
    """`random.DEFAULT` with another key, as if it were made here. It is as before at the end."""
    before = dict(vars(DEFAULT))
    like = vars(twin(DEFAULT, key))
    vars(DEFAULT).update({k: like[k] for k in (*_OF_A_TRACE, "_backup")})
    try:
        yield
    finally:
        vars(DEFAULT).clear()
        vars(DEFAULT).update(before)


def put_back(found: Any, own: set[int]) -> list[Any]:
    """Gives the states that a model has used, and that are none of its own, their old values."""
    foreign = []
    for state, value in zip(found.states, found.original_state_values):
        if id(state) not in own:
            vars(state)["_value"] = value
            foreign.append(state)
    return foreign


@contextlib.contextmanager
def running(key: Any) -> Iterator[None]:
    """What is around a module that runs: its stream, and a note of each setting that it reads.
    Other threads have to wait until they draw.
    """
    environ, checks = bs.environ, bs.transform._error_if
    with LOCK:
        get, every, fail = environ.get, environ.all, checks._err_jit_true_branch

        def fail_in_no_order(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            jax.debug.callback(fn, *args, **kwargs)

        environ.get, environ.all = noted()
        checks._err_jit_true_branch = fail_in_no_order
        try:
            with stream(key):
                yield
        finally:
            environ.get, environ.all, checks._err_jit_true_branch = get, every, fail


_get, _all = bs.environ.get, bs.environ.all


def settings() -> dict[Any, Any]:
    """All settings of this thread."""
    return _all()


register(settings)


def noted() -> tuple[Any, Any]:
    """`environ.get` and `environ.all` that note which settings are read."""

    @functools.wraps(_get)
    def get(key: Any, *args: Any, **kwargs: Any) -> Any:
        note(settings, key)
        return _get(key, *args, **kwargs)

    @functools.wraps(_all)
    def every(*args: Any, **kwargs: Any) -> Any:
        if "env" not in kwargs:  # as `environ.context` asks, which only gives back what it has set
            note(settings, ...)
        return _all(*args, **kwargs)

    return get, every


def hidden_attributes(node: Any) -> dict[str, Any]:
    """Those that it does not look into, and leaves out of a copy."""
    return {k: vars(node)[k] for k in node.graph_invisible_attrs if k in vars(node)}
