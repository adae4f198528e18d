"""Modules made of others: `Sequential` and `EnvironContext`. (After those of `brainstate.nn`, whose
arguments [their pages](https://brainstate.readthedocs.io) document.)
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .. import environ
from ._module import ElementWiseBlock, Module
from ._walk import shown


class Sequential(Module):
    """Modules, and functions, one after the other. It begins with a module."""

    layers: list[Any]

    def __init__(self, first: Any, *layers: Any):
        super().__init__()
        if not isinstance(first, Module):
            raise TypeError(f"A Sequential begins with a module, not {shown(first)}.")
        self._set([first, *layers])

    def update(self, x: Any) -> Any:
        for i, layer in enumerate(self.layers):
            try:
                x = layer(x)
            except Exception as error:
                name = getattr(layer, "__name__", type(layer).__name__)
                error.add_note(f"This is layer {i} of a Sequential, `{name}`.")
                raise
        return x

    def __getitem__(self, key: Any) -> Any:
        """A layer; for a slice or several positions a Sequential of these."""
        if isinstance(key, (slice, tuple, list)):
            new = type(self).__new__(type(self))
            Module.__init__(new)
            new._set(self.layers[key] if isinstance(key, slice) else [self[k] for k in key])
            return new
        return self.layers[key]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        return iter(self.layers)

    def append(self, layer: Any) -> None:
        """Adds a layer at the end."""
        self._set([*self.layers, layer])

    def extend(self, modules: Iterable[Any]) -> None:
        """Adds layers at the end."""
        self._set([*self.layers, *modules])

    def insert(self, index: int, module: Any) -> None:
        """Adds a layer before that at `index`."""
        layers = list(self.layers)
        layers.insert(index, module)
        self._set(layers)

    def _set(self, layers: list[Any]) -> None:
        for layer in layers:
            if not callable(layer):
                raise TypeError(f"A layer is a module or a function, not {shown(layer)}.")
        self.layers = layers
        sizes = [m for m in layers if isinstance(m, Module) and not isinstance(m, ElementWiseBlock)]
        first = layers[0] if layers else None
        self._in_size = first.in_size if isinstance(first, Module) else None
        self._out_size = sizes[-1].out_size if sizes else self._in_size


class EnvironContext(Module):
    """A module that is called with settings of its own, as for `environ.context`."""

    def __init__(self, layer: Any, **context: Any):
        super().__init__()
        if not isinstance(layer, Module):
            raise TypeError(f"`layer` is a module, not {shown(layer)}.")
        self.layer = layer
        self.context = context

    def update(self, *args: Any, context: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        """A call of the module; `context` are settings for this one alone."""
        with environ.context(**{**self.context, **(context or {})}):
            return self.layer(*args, **kwargs)

    def add_context(self, **context: Any) -> None:
        """Adds settings."""
        self.context.update(context)
