"""`Library`: what differs from library to library."""

import gc
import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from .._pickle import from_pickle, name_of, to_pickle
from .._rest import static_key
from .._signature import holds_closure, HoldsArrays
from .._values import dotted, own, Path, to_path


Method = str | int | Callable[..., Any] | None  # what of an object is called


class Library:
    """How a library's own object is made of a container, called, and taken apart again. Compared
    by what it is made of, so that models that were made the same way share what is compiled.
    """

    name = "adopted"  # what plans and messages call the model
    instead: Mapping[str, str] = MappingProxyType({})  # of names that are missing, what to write

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def build(self, tree: Any) -> Any:
        """The library's own object, of its container."""
        return tree

    def take(self, built: Any, tree: Any) -> Any:
        """The container of an object that `build` made.

        **Arguments:**

        - `tree`: the container with the values of before.

        **Raises:**

        `ValueError` if something was changed that no state stands for.
        """
        return built

    def call(
        self, tree: Any, method: Method, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any]:
        """The output of a call, and the container after it."""
        built = self.build(tree)
        out = self.function(built, method)(*args, **kwargs)
        return out, self.take(built, tree)

    def function(self, built: Any, method: Method) -> Callable[..., Any]:
        """What is called of an object."""
        if callable(method):
            return lambda *args, **kwargs: method(built, *args, **kwargs)
        if method is None and not callable(built):
            raise TypeError(
                f"A `{type(built).__name__}` can't be called. Name what is called of it.\n"
                "Wrong:  out, states = model(states, x)\n"
                'Right:  out, states = model.method("encode")(states, x)'
            )
        return built if method is None else getattr(built, str(method))

    def has_method(self, name: str) -> bool:
        """Whether the library's object has a method of this name."""
        return False

    def missing(self, name: str, paths: Sequence[Path]) -> Exception:
        """What is raised where a model is asked for something that is no method.

        **Arguments:**

        - `paths`: those of the nodes of the container.
        """
        said = f"`{self.name}`, bridged, has no method `{name}`."
        return AttributeError("\n".join([said, *filter(None, [self.instead.get(name)])]))

    def current(self, origin: Any, tree: Any) -> Any:
        """The container of today of the object that a model was made of. What in it is no array
        may have been changed.

        **Arguments:**

        - `tree`: a container of this model.
        """
        return self.take(origin, tree)

    def write(self, origin: Any, tree: Any) -> None:
        """Writes a container to the mutable object that it was made of."""
        raise TypeError(
            f"`{self.name}` is immutable, so that nothing can be written back to it.\n"
            "Wrong:  model.write_back(states)\n"
            "Right:  new = model.rebuild(states)"
        )


class Fixed:
    """A node of a container that is no state."""

    def __init__(self, node: Any):
        # A node may be mutable. Its key is that of now.
        leaves, treedef = jax.tree.flatten(node)
        self.node: Any = own(node)
        self.key: tuple[Any, ...] = (treedef, tuple(map(static_key, leaves)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fixed) and self.key == other.key

    def __repr__(self) -> str:
        return ", ".join(map(name_of, jax.tree.leaves(self.node))) or "nothing"


class Node(NamedTuple):
    """What stays of one node of a container when its value goes."""

    path: Path
    outer: Any  # the structure around the value; None of a leaf
    fixed: Fixed | None  # the node, if it is no state
    is_legacy: bool  # whether it holds a random key as its data

    def build(self, value: Any) -> Any:
        """The node, with a value."""
        if self.is_legacy:
            value = jax.random.key_data(value)
        if self.outer is None:
            return value
        return self.outer.unflatten([value] if self.outer.num_leaves == 1 else value)

    def blank(self) -> Any:
        """The node, without a value."""
        if self.fixed is not None:
            return self.fixed.node
        blank = jax.ShapeDtypeStruct((), bool)
        return (
            blank if self.outer is None else self.outer.unflatten([blank] * self.outer.num_leaves)
        )


class Layout(HoldsArrays):
    """What stays of a container when all values go. Compared by its parts."""

    def __init__(
        self,
        library: Library,
        treedef: Any,
        nodes: tuple[Node, ...],
        is_node: Callable[[Any], bool] | None,
    ):
        self.library: Library = library
        self.treedef: Any = treedef
        self.nodes: tuple[Node, ...] = nodes
        self.is_node: Callable[[Any], bool] | None = is_node

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Layout)
            and self.nodes == other.nodes
            and self.treedef == other.treedef
            and self.is_node is other.is_node
            and self.library == other.library
        )

    def __hash__(self) -> int:  # of what is always hashable
        return hash(tuple(node.path for node in self.nodes))

    def __repr__(self) -> str:  # which tells compiled functions apart, too
        return f"{self.library!r}, {self.treedef}, {self.nodes}"

    def holds_arrays(self) -> bool:
        fixed = [node.fixed.node for node in self.nodes if node.fixed is not None]
        held = (vars(self.library), fixed, self.is_node)
        return holds_closure(self.treedef) or _reaches_array(held)

    def __deepcopy__(self, memo: Any) -> "Layout":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        tree = to_pickle(self.treedef.unflatten([node.blank() for node in self.nodes]))
        said = tuple((node.fixed is not None, node.is_legacy) for node in self.nodes)
        return _unpickled, (self.library, tree, said, self.is_node)

    def flatten(self, tree: Any, is_origin: bool = False) -> list[Any]:
        """The nodes of a container.

        **Arguments:**

        - `is_origin`: whether it is that of the object that the model was made of, rather than
            what a call gave.

        **Raises:**

        `ValueError` if it has others than when the model was made.
        """
        found, treedef = nodes_of(tree, self.is_node)
        if treedef == self.treedef:
            return [node for _, node in found]
        mine, others = [n.path for n in self.nodes], [path for path, _ in found]
        new = [f"`{dotted(path)}`" for path in others if path not in mine]
        lost = [f"`{dotted(path)}`" for path in mine if path not in others]
        if is_origin:
            said = [f"has {', '.join(new)}, too"] * bool(new)
            said += [f"lacks {', '.join(lost)}"] * bool(lost)
            raise ValueError(
                f"The `{self.library.name}` that the model was made of is another now: it "
                f"{' and '.join(said) or 'has another structure'}. Nothing was written. Bridge it "
                "again, or let `model.rebuild(states)` make another."
            )
        said = [f"made {', '.join(new)}, for which the context has no place"] * bool(new)
        said += [f"took {', '.join(lost)} away"] * bool(lost)
        raise ValueError(
            f"A call of `{self.library.name}` {' and '.join(said) or 'changed its structure'}. A "
            "context keeps the states that it was made with. Let the model have all of them when "
            "it is made (call it once before, perhaps); or take out what is new, and return it:\n"
            "Right:  model.method(lambda module, x: ...)"
        )


def _reaches_array(*objects: Any) -> bool:
    """Whether there are arrays in objects, or in what the functions in them close over: tracers, or
    any that takes up memory to speak of.
    """
    ahead: list[Any] = list(objects)
    seen: set[int] = set()
    while ahead:
        x = ahead.pop()
        if isinstance(x, (jax.Array, np.ndarray)) and (isinstance(x, Tracer) or x.size > _FEW):
            return True
        if id(x) in seen or isinstance(x, _SHARED):
            continue
        seen.add(id(x))
        if isinstance(x, types.FunctionType):
            ahead += [x.__closure__, x.__defaults__, x.__kwdefaults__, x.__dict__]
        elif (wrapped := getattr(x, "__wrapped__", None)) is not None:  # of `jax.jit`, with caches
            ahead.append(wrapped)
        else:
            ahead += gc.get_referents(x)
    return False


_FEW = 256  # elements: brainunit, say, has a small array in each unit
# What is there anyhow, whoever refers to it.
_SHARED = (type, types.ModuleType, types.BuiltinFunctionType, types.CodeType, weakref.ref)


def _unpickled(library: Library, tree: Any, said: Any, is_node: Any) -> Layout:
    found, treedef = nodes_of(from_pickle(tree), is_node)
    nodes = [
        Node(path, None, Fixed(node), False)
        if is_fixed
        else Node(path, apart(node, is_node)[0], None, is_legacy)
        for (path, node), (is_fixed, is_legacy) in zip(found, said)
    ]
    return Layout(library, treedef, tuple(nodes), is_node)


def nodes_of(tree: Any, is_node: Callable[[Any], bool] | None) -> tuple[list[Any], Any]:
    """The nodes of a container with their paths, and its structure."""
    with_path, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_node)
    return [(_path(keys) or ("value",), node) for keys, node in with_path], treedef


def _path(keys: tuple) -> Path:
    """A path, in which a tuple that is a key of a dictionary is several keys."""
    return tuple(x for k in to_path(keys) for x in (k if isinstance(k, tuple) else (k,)))


def class_of(node: Any) -> type:
    """The class of a node: that of the library's own object, where the node stands for one."""
    return getattr(node, "stands_for", type(node))


def apart(node: Any, is_node: Callable[[Any], bool] | None) -> tuple[Any, Any]:
    """The structure around the value of a node, and the value. That of a leaf is None."""
    if is_node is None or not is_node(node):
        return None, node
    children, outer = jax.tree.flatten(node, is_leaf=lambda x: x is not node)
    return outer, children[0] if len(children) == 1 else tuple(children)
