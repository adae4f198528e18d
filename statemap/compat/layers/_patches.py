"""Changes to what another package has, which can be taken back."""

import sys
import types
from collections.abc import Callable
from typing import Any


_ABSENT: Any = object()


class Patches:
    """What was changed, and how it was before."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def set(self, owner: Any, name: str, value: Any) -> Any:
        """Sets an attribute.

        **Returns:**

        What it was, None if there was none.
        """
        before = vars(owner).get(name, _ABSENT)
        if before is _ABSENT:
            self._undo.append(lambda: delattr(owner, name))
        else:
            self._undo.append(lambda: setattr(owner, name, before))
        setattr(owner, name, value)
        return None if before is _ABSENT else before

    def wrap(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Sets an attribute to what `make` makes of it; nothing, if there is none."""
        if name in vars(owner):
            self.set(owner, name, make(vars(owner)[name]))

    def add_base(self, cls: type, base: type) -> None:
        before = cls.__bases__
        cls.__bases__ = (*before, base)
        self._undo.append(lambda: setattr(cls, "__bases__", before))

    def add(self, items: list[Any], item: Any) -> None:
        items.append(item)
        self._undo.append(lambda: items.remove(item))

    def call(self, undo: Callable[[], None]) -> None:
        """Something to be done when all is taken back."""
        self._undo.append(undo)

    def replace(self, others: dict[int, tuple[Any, Any]], keep: str) -> None:
        """Puts others in the place of objects, wherever a module or a class of one has them, or a
        function as a default.

        **Arguments:**

        - `others`: `(old, new)` by the id of the old.
        - `keep`: the package that is left as it is.
        """
        for name, module in list(sys.modules.items()):
            if isinstance(module, types.ModuleType) and name.partition(".")[0] != keep:
                for key, value in list(vars(module).items()):
                    if _is_in(others, value):
                        self.set(module, key, others[id(value)][1])
                    else:
                        self._replace_in(value, name, others)

    def _replace_in(self, x: Any, module: str, others: dict[int, tuple[Any, Any]]) -> None:
        # `isinstance` and `getattr` would ask a deprecated object, which warns.
        if not issubclass(type(x), types.FunctionType | type):
            return
        if getattr(x, "__module__", None) != module:
            return
        if isinstance(x, types.FunctionType):
            defaults = x.__defaults__ or ()
            if any(_is_in(others, value) for value in defaults):
                new = (others[id(v)][1] if _is_in(others, v) else v for v in defaults)
                self.set(x, "__defaults__", tuple(new))
        else:
            for key, value in list(vars(x).items()):
                if _is_in(others, value):
                    self.set(x, key, others[id(value)][1])

    def undo(self) -> None:
        while self._undo:
            self._undo.pop()()


def _is_in(others: dict[int, tuple[Any, Any]], x: Any) -> bool:
    return id(x) in others and others[id(x)][0] is x
