"""Modules made of others: `Sequential` and `EnvironContext`. (After those of `brainstate.nn`.)"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .. import environ
from ._module import ElementWiseBlock, Module
from ._walk import shown


class Sequential(Module):
    """Modules, and functions, one after the other.

    ```python
    import jax.numpy as jnp
    from statemap.compat import nn, ParamState

    class Scale(nn.Module):
        def __init__(self, by):
            super().__init__()
            self.by = ParamState(jnp.asarray(by))

        def update(self, x):
            return x * self.by.value

    net = nn.Sequential(Scale(2.0), jnp.tanh, Scale(3.0))
    assert net(0.5).round(2) == 2.28
    assert list(net.states()) == [("layers", 0, "by"), ("layers", 2, "by")]
    ```
    """

    layers: list[Any]

    def __init__(self, first: Any, *layers: Any):
        """**Arguments:**

        - `first`: a module.
        - `layers`: modules or functions.

        **Raises:**

        `TypeError` if they are something else.
        """
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
            some = self.layers[key] if isinstance(key, slice) else [self.layers[k] for k in key]
            new = type(self).__new__(type(self))
            Module.__init__(new)
            new._set(some)
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
    """A module that is called with settings of its own.

    ```python
    from statemap.compat import environ, nn

    class Step(nn.Module):
        def update(self, x):
            return x + environ.get_dt()

    step = nn.EnvironContext(Step(), dt=0.5)
    assert step(1.0) == 1.5
    assert step(1.0, context={"dt": 2.0}) == 3.0
    ```
    """

    def __init__(self, layer: Any, **context: Any):
        """**Arguments:**

        - `layer`: the module.
        - `**context`: the settings, as for `environ.context`.
        """
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
