"""What is immutable: pytree nodes; and what is refused of a context, with what to write instead."""

from typing import Any

from ._errors import near
from ._slots import Slots


class FrozenNode:
    """The base of pytree nodes that never change, and so need not be looked through at each call.
    (`equinox.Module` is another.)
    """

    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"`{type(self).__name__}` is immutable.")


class Immutable:
    """The base of the context. Assignments are refused, and so are attributes that it lacks."""

    __slots__ = ()
    _slots: Slots

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            "A context is immutable.\n"
            f"Wrong:  states.{name} = value\n"
            f'Right:  states = states.set("{name}", value)'
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_slots", "_values"):
            raise AttributeError(name)
        raise AttributeError(
            f"A context has no attribute `{name}`."
            + (
                f"\nWrong:  states.{name}\nRight:  states[{name!r}]"
                if name in self._slots.index
                else near(name, self._slots.names())
                + " States are looked up by handle, path or name: `states[model.v]`."
            )
        )

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError(
            "A context is immutable.\n"
            "Wrong:  states[key] = value\n"
            "Right:  states = states.set(key, value)"
        )

    def __delitem__(self, key: Any) -> None:
        raise TypeError(
            "A context is immutable.\n"
            "Wrong:  del states[key]\n"
            "Right:  states = states.select(sm.Not(...)), with a filter for what is to go"
        )
