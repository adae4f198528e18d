"""`Module`: the base of models that hold cells. (After `brainstate.nn.Module`, whose methods
[its page](https://brainstate.readthedocs.io) documents.)
"""

import operator
import reprlib
import textwrap
from collections.abc import Iterator
from typing import Any, ClassVar

from ..._filters import Filter
from ..._state import State as CoreState
from .._catch import catch_new_states
from .._cells import ParamState
from ._collective import init_all_states
from ._walk import dotted_items, MAX_LEVEL, nodes, states


Size = tuple[int, ...]


class Module:
    """A model, or a part of one: an object that holds cells and other modules in its attributes,
    in lists, tuples and dictionaries too.

    ```python
    import jax.numpy as jnp
    from statemap.compat import nn, ShortTermState

    class Counter(nn.Module):
        def init_state(self):
            self.count = ShortTermState(jnp.zeros(()))

        def update(self, x):
            self.count.value = self.count.value + x
            return self.count.value

    counter = Counter()
    counter.init_all_states()
    assert counter(2.0) == 2 and counter(3.0) == 5
    assert list(counter.states()) == [("count",)]
    ```
    """

    graph_invisible_attrs: ClassVar[tuple[str, ...]] = ()  # not looked through for cells
    _name: str | None = None
    _in_size: Size | None = None
    _out_size: Size | None = None

    def __init__(self, name: Any = None):
        if name is not None and not isinstance(name, str):
            raise TypeError(f"The name of a module is a string, not {name!r}.")
        self._name = name

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, CoreState):
            kind = type(value).__name__
            raise TypeError(
                f"`{name}` is a `statemap.{kind}`, which is immutable; a module of the shim holds "
                "the shim's own states.\n"
                f"Wrong:  self.{name} = statemap.{kind}(...)\n"
                f"Right:  self.{name} = statemap.compat.{kind}(...)"
            )
        object.__setattr__(self, name, value)

    @property
    def name(self) -> str | None:
        """Its name, which can't be changed."""
        return self._name

    @property
    def in_size(self) -> Size | None:
        """The shape of its inputs, where it has one."""
        return self._in_size

    @in_size.setter
    def in_size(self, size: Any) -> None:
        self._in_size = _as_size(size, "in_size")

    @property
    def out_size(self) -> Size | None:
        """The shape of its outputs, where it has one."""
        return self._out_size

    @out_size.setter
    def out_size(self, size: Any) -> None:
        self._out_size = _as_size(size, "out_size")

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """What a call does. For subclasses to write."""
        raise NotImplementedError(f"`{type(self).__name__}` has no method `update`.")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.update(*args, **kwargs)

    def __rrshift__(self, x: Any) -> Any:
        """`x >> module`: a call."""
        return self(x)

    def init_state(self, *args: Any, **kwargs: Any) -> None:
        """Makes this module's own cells. For subclasses to write."""

    def reset_state(self, *args: Any, **kwargs: Any) -> None:
        """Sets this module's own cells back. For subclasses to write."""

    def init_all_states(self, *args: Any, state_tag: str | None = None, **kwargs: Any) -> Any:
        """Calls `init_state` of this module and all in it, the innermost first. Returns a list of
        the cells that were made.
        """
        with catch_new_states(state_tag=state_tag) as catcher:
            init_all_states(self, *args, **kwargs)
        return catcher

    def states(self, *filters: Filter, allowed_hierarchy: tuple[int, int] = (0, MAX_LEVEL)) -> Any:
        """The cells of this module and all in it, by path, in a `FlattedDict`; or with several
        filters a tuple of these, where a cell that several match is in the first.
        """
        return states(self, *filters, allowed_hierarchy=allowed_hierarchy)

    def nodes(self, *filters: Filter, allowed_hierarchy: tuple[int, int] = (0, MAX_LEVEL)) -> Any:
        """The modules in this one and itself, by path, the innermost first. As `states`."""
        return nodes(self, *filters, allowed_hierarchy=allowed_hierarchy)

    def children(self) -> Iterator["Module"]:
        """The modules directly in this one."""
        return (module for _, module in self.named_children())

    def named_children(self) -> Iterator[tuple[str, "Module"]]:
        """The same, with their names."""
        return dotted_items(self.nodes(Module, allowed_hierarchy=(1, 1)))

    def modules(self, include_self: bool = True) -> Iterator["Module"]:
        """All modules in this one."""
        return (module for _, module in self.named_modules(include_self=include_self))

    def named_modules(
        self, prefix: str = "", include_self: bool = True
    ) -> Iterator[tuple[str, "Module"]]:
        """The same, with their names, such as `"layers.0"`."""
        levels = (0 if include_self else 1, MAX_LEVEL)
        return dotted_items(self.nodes(allowed_hierarchy=levels), prefix)

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        """The parameters of this module and, with `recurse`, of all in it."""
        return (cell for _, cell in self.named_parameters(recurse=recurse))

    def named_parameters(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Any]]:
        """The same, with their names."""
        levels = (0, MAX_LEVEL if recurse else 0)
        return dotted_items(self.states(ParamState, allowed_hierarchy=levels), prefix)

    @reprlib.recursive_repr()
    def __repr__(self) -> str:
        shown = [
            f"{name.removeprefix('_')}={value!r},\n"
            for name, value in vars(self).items()
            if value is not None and name not in self.graph_invisible_attrs
        ]
        inner = "\n" + textwrap.indent("".join(shown), "  ") if shown else ""
        return f"{type(self).__name__}({inner})"


class ElementWiseBlock(Module):
    """A module whose outputs have the shape of its inputs."""


def _as_size(size: Any, parameter: str) -> Size | None:
    if size is None:
        return None
    try:
        return tuple(map(operator.index, size if isinstance(size, (tuple, list)) else [size]))
    except TypeError as error:
        raise TypeError(f"`{parameter}` is an int or a tuple of ints, not {size!r}.") from error
