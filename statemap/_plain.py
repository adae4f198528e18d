"""What is static in other libraries' objects and changes in place all the same: lists, dictionaries
and sets of plain data, and settings that are dataclasses.

A treedef holds the very object, so that it is equal to itself after a change. Here such objects are
compared by what is in them.
"""

import copy
import types
from collections.abc import Hashable
from typing import Any

from ._exact import by_identity


def fields_of(x: Any) -> dict[str, Any] | None:
    """The fields of settings that may change, a dataclass or a `types.SimpleNamespace`; None of
    what is neither.
    """
    if isinstance(x, type):
        return None
    options = getattr(type(x), "__dataclass_params__", None)
    is_ours = options is not None and options.eq and not options.frozen
    if not (is_ours or isinstance(x, types.SimpleNamespace)) or not hasattr(x, "__dict__"):
        return None
    declared = getattr(type(x), "__dataclass_fields__", {}).values()
    hidden = {field.name for field in declared if not field.compare}
    return {k: v for k, v in vars(x).items() if k not in hidden}


def changes_in_place(x: Any, stop: tuple[type, ...]) -> bool:
    """Whether an object, or one in it, is such a container of static data.

    **Arguments:**

    - `stop`: the classes of what is no static data.
    """
    seen: set[int] = set()

    def look(x: Any) -> tuple[bool, bool]:  # is there one, and is all of it static
        items = _items(x)
        if items is None:
            return False, not isinstance(x, stop)
        if id(x) in seen:
            return True, True
        seen.add(id(x))
        found = [look(item) for item in items]
        is_one = not isinstance(x, tuple) or any(one for one, _ in found)
        return is_one, all(static for _, static in found) and not isinstance(x, stop)

    return all(look(x))


def contents(x: Any) -> Hashable:
    """What is in an object: plain data by value, containers by what they hold, all else by
    identity.
    """
    seen: dict[int, int] = {}

    def key(x: Any) -> Hashable:
        items = _items(x)
        if items is None:
            return by_identity(x, None)
        if id(x) in seen:
            return "again", seen[id(x)]
        if not isinstance(x, tuple):
            seen[id(x)] = len(seen)
        if isinstance(x, (set, frozenset)):
            return type(x), frozenset(map(key, items))
        names = x if isinstance(x, dict) else fields_of(x) or ()
        return type(x), tuple(by_identity(k, None) for k in names), tuple(map(key, items))

    return key(x)


def copied(x: Any, memo: dict[int, Any]) -> Any:
    """A copy of the containers in an object, as `copy.deepcopy` makes them; the rest as it is.

    **Arguments:**

    - `memo`: the copies that were made already, by the id of the original, and the originals.
    """
    items = _items(x)
    if items is None or isinstance(x, frozenset):
        return x
    if id(x) in memo:
        return memo[id(x)][0]
    if isinstance(x, tuple):
        new = [copied(item, memo) for item in items]
        same = all(a is b for a, b in zip(x, new))
        make: Any = getattr(type(x), "_make", type(x))  # of a named tuple
        return x if same else make(new)
    made = copy.copy(x)
    memo[id(x)] = made, x
    if isinstance(x, list):
        made[:] = [copied(item, memo) for item in x]
    elif isinstance(x, dict):
        for k, item in x.items():
            made[k] = copied(item, memo)
    elif not isinstance(x, set):
        for k, item in vars(x).items():
            made.__dict__[k] = copied(item, memo)
    return made


def _items(x: Any) -> list[Any] | None:
    """What a container holds; None for what is none."""
    if isinstance(x, (list, tuple, set, frozenset)):
        return list(x)
    if isinstance(x, dict):
        return list(x.values())
    fields = fields_of(x)
    return None if fields is None else list(fields.values())
