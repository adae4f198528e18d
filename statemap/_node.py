"""The context as a pytree node: what JAX takes it apart into, and makes it of again, in another
process too.
"""

import importlib
import json
from typing import Any

import jax
from jax import export

from ._overlay import moved_of, MovedSlots, with_moved
from ._slots import intern_slots, Slot, Slots
from ._state import State
from ._states import make_states, States
from ._values import dotted, Path


def _structure(states: States) -> Any:
    moved = moved_of(states._values)
    return MovedSlots(states._slots, moved) if moved else states._slots


def _flatten_with_keys(states: States) -> tuple:
    keys = (jax.tree_util.DictKey(n) for n in states._slots.names())
    return tuple(zip(keys, states._values)), _structure(states)


def _unflatten(structure: Any, values: Any) -> States:
    if type(structure) is MovedSlots:
        return make_states(structure.slots, with_moved(tuple(values), structure.moved))
    return make_states(structure, tuple(values))


jax.tree_util.register_pytree_with_keys(
    States,
    _flatten_with_keys,
    _unflatten,
    lambda states: (tuple(states._values), _structure(states)),
)


# For `jax.export`, which saves what functions take and return as structures.

_PACKAGE = __name__.partition(".")[0]


def _to_json(structure: Any) -> bytes:
    """The slots of a context, as bytes that are the same in every process."""
    slots = structure.slots if type(structure) is MovedSlots else structure
    return json.dumps([_slot_to_json(slot) for slot in slots.entries]).encode()


def _slot_to_json(slot: Slot) -> Any:
    paths = (slot.path, *slot.aliases)
    if dict(slot.static)["rest"] is not None:
        raise TypeError(
            f"The state `{dotted(slot.path)}` can't be exported: its value is a layer, of which "
            "some is no array. Make each array of it a state:\n"
            f"Wrong:  sm.{slot.kind.__name__}(layer)\n"
            f"Right:  sm.declare(layer, sm.{slot.kind.__name__})"
        )
    for name, value in (*((f"key {k!r}", k) for p in paths for k in p), *slot.static):
        if not isinstance(value, (str, int, float, bool, type(None))):
            raise TypeError(
                f"The state `{dotted(slot.path)}` can't be exported: its {name}, {value!r} of type "
                f"`{type(value).__name__}`, is no string, number or bool."
            )
    kind = slot.kind
    if "<locals>" in kind.__qualname__:
        raise TypeError(
            f"The state `{dotted(slot.path)}` can't be exported: its kind "
            f"`{kind.__module__}.{kind.__qualname__}` is defined in a function, where no other "
            "process finds it. Define it at the top of a module."
        )
    is_own = kind.__module__ == State.__module__  # which is private, and may be renamed
    return {
        "paths": [list(path) for path in paths],
        "kind": [_PACKAGE if is_own else kind.__module__, kind.__qualname__],
        "static": [list(item) for item in slot.static],
        "model": slot.model,
    }


def _from_json(data: bytes | bytearray) -> Slots:
    return intern_slots(tuple(map(_slot_from_json, json.loads(bytes(data)))))


def _slot_from_json(entry: Any) -> Slot:
    path, *aliases = (tuple(path) for path in entry["paths"])
    static = tuple((name, value) for name, value in entry["static"])
    module, name = entry["kind"]
    return Slot(path, _find_kind(module, name, path), static, entry["model"], tuple(aliases))


def _find_kind(module: str, name: str, path: Path) -> type[State]:
    try:
        kind: Any = importlib.import_module(module)
        for part in name.split("."):
            kind = getattr(kind, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"The exported function has a state `{dotted(path)}` of the kind `{module}.{name}`, "
            "which this process does not find. The module that defines it has to be importable "
            "where the function is loaded."
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, State)):
        raise ValueError(
            f"The exported function has a state `{dotted(path)}` of the kind `{module}.{name}`, "
            "which is no kind of State here."
        )
    return kind


export.register_pytree_node_serialization(
    States,
    serialized_name="statemap.States",
    serialize_auxdata=_to_json,
    deserialize_auxdata=_from_json,
)
