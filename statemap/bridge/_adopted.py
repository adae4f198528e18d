"""`Adopted`: a model of another library, as a function of states."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import jax
import jax.core

from .._immutable import FrozenNode
from .._slots import path_order
from .._states import States
from .._values import dotted, fit, function_name, own, Path
from ._library import apart, Fixed, Layout, Library, Method


T = TypeVar("T")
C = TypeVar("C")


class Origin:
    """The object that a model was made of, which the model does not keep alive. All are equal: what
    is compiled does not depend on it.
    """

    __slots__ = ("ref",)

    def __init__(self, found: Any = None):
        self.ref: Callable[[], Any] | None = None if found is None else weakref.ref(found)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Origin)

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "Origin()"

    def get(self, name: str) -> Any:
        """The object.

        **Raises:**

        `ReferenceError` if it is gone.
        """
        found = None if self.ref is None else self.ref()
        if found is None:
            raise ReferenceError(
                f"The `{name}` that the model was made of is gone, so that nobody could see what "
                "is written back to it; that of a population never was. "
                "`model.rebuild(states)` makes another."
            )
        return found


class Adopted(FrozenNode, Generic[T]):
    """A model of another library as a function of states, which `statemap.bridge` makes.

    It is called as every model is, `out, states = model(states, *args, **kwargs)`, and is a pytree
    of handles, one for each state.
    """

    __slots__ = ("_handles", "_layout", "_method", "_origin", "__weakref__")
    _handles: tuple[Any, ...]  # of each node; None for one that is no state
    _layout: Layout
    _method: Method
    _origin: Origin

    def __init__(self, handles: Sequence[Any], layout: Layout, method: Method, origin: Origin):
        parts = (tuple(handles), layout, method, origin)
        for name, part in zip(Adopted.__slots__, parts):
            object.__setattr__(self, name, part)

    def __call__(self, states: C, /, *args: Any, **kwargs: Any) -> tuple[Any, C]:
        """Calls the model.

        **Arguments:**

        - `states`: the context.
        - `*args`, `**kwargs`: those of the library's own model.

        **Returns:**

        `(out, states)`: what it returns, and the context with all that it wrote.

        **Raises:**

        `ValueError` if it wrote something that no state stands for.
        """
        before = self._fill(states)
        out, after = self._layout.library.call(before, self._method, args, kwargs)
        return out, self._update(states, after)

    def method(self, method: str | int | Callable[..., Any]) -> "Adopted[T]":
        """Another function of the model, as a function of states.

        **Arguments:**

        - `method`: the name of a method; or a function `(object, *args, **kwargs)`, which is given
            the library's own object first.

        **Returns:**

        A model that is called so, with the same states. `model.encode` is short for
        `model.method("encode")`.
        """
        return Adopted(self._handles, self._layout, method, self._origin)

    def rebuild(self, states: States) -> T:
        """The library's own object, with the values of a context: in a lane those of the lane, of
        a population those of all members.

        **Arguments:**

        - `states`: the context.
        """
        return self._layout.library.build(self._fill(states))

    def read(self, states: C, built: T) -> C:
        """The context with the values of an object that `rebuild` made.

        **Arguments:**

        - `states`: the context that it was made of.
        - `built`: the object, which may have been called or changed since.

        **Returns:**

        The new context.

        **Raises:**

        `ValueError` if something was changed that no state stands for.
        """
        return self._update(states, self._layout.library.take(built, self._fill(states)))

    def write_back(self, states: States) -> None:
        """Writes the values of a context to the object that the model was made of, where the
        library's objects are mutable: to all of its variables, or, on an error, to none.

        **Arguments:**

        - `states`: the context.

        **Raises:**

        `TypeError` if the library's objects are immutable; `ReferenceError` if nobody else has
        kept the object; `ValueError` if a value does not fit, such as one of a population.
        """
        layout, library = self._layout, self._layout.library
        tree = self._fill(states)
        if type(library).write is Library.write:
            library.write(None, tree)  # raises
        origin = self._origin.get(library.name)
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(states)):
            raise ValueError(
                f"Values of a trace would be written back to the `{library.name}` outside of it. "
                "Return the context, and write it back after the call.\n"
                "Wrong:  jax.jit(lambda states: model.write_back(model(states, x)[1]))(states)\n"
                "Right:  out, states = jax.jit(model)(states, x); model.write_back(states)"
            )
        before = layout.flatten(library.current(origin, tree), is_origin=True)
        for node, old, new in zip(layout.nodes, before, layout.flatten(tree)):
            old, new = apart(old, layout.is_node)[1], apart(new, layout.is_node)[1]
            try:
                fit(old, new, dotted(node.path))
            except ValueError as error:
                error.add_note(
                    "(If the context is that of a population, write one member back, "
                    "`model.write_back(sm.lane(states, axes, 0))`, or let "
                    "`model.rebuild(states)` make an object of all of them.)"
                )
                raise
        library.write(origin, tree)

    def __getattr__(self, name: str) -> Any:
        if name == "__name__":
            first, method = self._layout.library.name, self._method
            return first if method is None else f"{first}.{_name(method)}"
        if name.startswith("_"):  # asked for before there is a layout, too
            raise AttributeError(name)
        library = self._layout.library
        if not library.has_method(name):
            raise library.missing(name, [node.path for node in self._layout.nodes])
        return self.method(name)

    def __copy__(self) -> "Adopted[T]":
        return self

    def __deepcopy__(self, memo: Any) -> "Adopted[T]":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Adopted, (self._handles, self._layout, self._method, Origin())

    def __repr__(self) -> str:
        return f"Adopted({self.__name__}, {sum(h is not None for h in self._handles)} states)"

    def _fill(self, states: Any) -> Any:
        """The container with the values of a context."""
        if not isinstance(states, States):
            raise TypeError(
                f"`{self.__name__}` takes the context first, not a `{type(states).__name__}`.\n"
                "Wrong:  out = model(x)\n"
                "Right:  out, states = model(states, x)"
            )
        nodes = [
            own(node.fixed.node) if node.fixed is not None else node.build(states[handle])
            for node, handle in zip(self._layout.nodes, self._handles)
        ]
        return self._layout.treedef.unflatten(nodes)

    def _update(self, states: Any, tree: Any) -> Any:
        """The context with the values of a container."""
        layout, new = self._layout, {}
        for node, handle, found in zip(layout.nodes, self._handles, layout.flatten(tree)):
            where = f"`{dotted(node.path)}` of `{layout.library.name}`"
            if node.fixed is not None:
                if Fixed(found) != node.fixed:
                    raise ValueError(
                        f"{where} was {node.fixed} and was changed to {Fixed(found)}. It held no "
                        "array when the model was made, and is no state, so that the new value "
                        "would be lost. Make the model with an array there."
                    )
                continue
            outer, value = apart(found, layout.is_node)
            if outer != node.outer:
                was, now = _shown(node.outer), _shown(outer)
                if was == now:
                    was, now = node.outer, outer
                raise ValueError(
                    f"{where} was {was} and was changed to {now}, which is static in a call, so "
                    "that the change would be lost."
                )
            new[handle] = value
        return states.update(new)


def _shown(outer: Any) -> str:
    data = None if outer is None else outer.node_data()
    return "no node" if data is None else f"`{data[0].__name__}`"


def _name(method: Any) -> str:
    return function_name(method) if callable(method) else str(method)


class _Branch(FrozenNode):
    """What lies below one key of several paths: handles, and more branches."""

    __slots__ = ("children", "keys")
    keys: tuple[Any, ...]
    children: tuple[Any, ...]

    def __init__(self, keys: tuple[Any, ...], children: tuple[Any, ...]):
        object.__setattr__(self, "keys", keys)
        object.__setattr__(self, "children", children)

    @staticmethod
    def of(leaves: list[tuple[Path, Any]]) -> "_Branch":
        found: dict[Any, list[tuple[Path, Any]]] = {}
        for path, leaf in leaves:
            found.setdefault(path[0], []).append((path[1:], leaf))
        keys = sorted(found, key=lambda key: path_order((key,)))
        below = (found[key] for key in keys)
        children = (part[0][1] if part[0][0] == () else _Branch.of(part) for part in below)
        return _Branch(tuple(keys), tuple(children))

    def find(self, path: Path) -> Any:
        child = self.children[self.keys.index(path[0])]
        return child if len(path) == 1 else child.find(path[1:])


def _keyed(branch: _Branch) -> tuple[tuple[Any, Any], ...]:
    return tuple((jax.tree_util.DictKey(k), x) for k, x in zip(branch.keys, branch.children))


def _root(model: Adopted) -> _Branch:
    nodes = zip(model._layout.nodes, model._handles)
    return _Branch.of([(node.path, handle) for node, handle in nodes if node.fixed is None])


def _static(model: Adopted, root: _Branch) -> tuple[Any, ...]:
    return root.keys, model._layout, model._method, model._origin


def _unflatten(static: tuple[Any, ...], children: Any) -> Adopted:
    keys, layout, method, origin = static
    root = _Branch(keys, tuple(children))
    handles = [None if n.fixed is not None else root.find(n.path) for n in layout.nodes]
    return Adopted(handles, layout, method, origin)


jax.tree_util.register_pytree_with_keys(
    Adopted,
    lambda model: (_keyed(root := _root(model)), _static(model, root)),
    _unflatten,
    lambda model: ((root := _root(model)).children, _static(model, root)),
)
jax.tree_util.register_pytree_with_keys(
    _Branch,
    lambda branch: (_keyed(branch), branch.keys),
    lambda keys, children: _Branch(keys, tuple(children)),
    lambda branch: (branch.children, branch.keys),
)
