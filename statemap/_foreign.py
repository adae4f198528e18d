"""Objects of other libraries that hold states and change in place: modules and variables of
`flax.nnx`, states and modules of brainstate. They are found and refused here; `statemap.bridge` is
the way in.

Nothing is imported, and nothing looked for where none of these libraries is.
"""

import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax


def classes() -> tuple[type, ...]:
    """The classes of foreign objects, of the libraries that are loaded."""
    found = []
    if nnx := sys.modules.get("flax.nnx"):
        found += [getattr(nnx, "Pytree", None), getattr(nnx, "Variable", None)]
    if brainstate := sys.modules.get("brainstate"):
        state = getattr(brainstate, "State", None)
        # What the shim answers for is not foreign: its own classes, under whatever name, and
        # those of brainstate when its layers run on the shim.
        cell = getattr(sys.modules.get("statemap.compat._frames"), "Cell", ())
        if state is not None and not issubclass(state, cell):
            found += [state, getattr(getattr(brainstate, "graph", None), "Node", None)]
    return tuple(cls for cls in found if cls is not None)


def library(x: Any) -> str:
    """The library of a foreign object, as the bridge calls it."""
    is_nnx = any(cls.__module__.startswith("flax") for cls in type(x).__mro__)
    return "nnx" if is_nnx else "brainstate"


def described(x: Any) -> str:
    name = "flax.nnx" if library(x) == "nnx" else "brainstate"
    return f"an object of {name} (`{type(x).__name__}`)"


def way_in(x: Any, name: str, then: str = "out, states = sm.vmap2(net)(states, x)") -> str:
    """The bridge, as messages show it.

    **Arguments:**

    - `name`: of the object.
    - `then`: the code that follows.
    """
    # A single variable or state is brought in with the module that holds it.
    cells = {"nnx": "Variable", "brainstate": "State"}
    is_cell = any(cls.__name__ == cells[library(x)] for cls in type(x).__mro__)
    return (
        "Right:  from statemap import bridge\n"
        f"        net, states = bridge.{library(x)}({'module' if is_cell else name})\n"
        f"        {then}"
    )


def refuse_foreign(x: Any, what: str, wrong: str, **then: str) -> None:
    """Refuses a foreign object where statemap's own is expected.

    **Arguments:**

    - `what`: the sentence up to the object.
    - `wrong`: the mistake, as code.
    - `then`: what follows the bridge, as for `way_in`.

    **Raises:**

    `TypeError` that names the bridge.
    """
    if isinstance(x, classes()):
        raise TypeError(
            f"{what} {described(x)}, which keeps its states and changes in place. The bridge makes "
            "an ordinary function and a context of it.\n"
            f"Wrong:  {wrong}\n{way_in(x, 'module', **then)}"
        )


def find_foreign(x: Any) -> Any:
    """What is foreign in an object: itself, or an item of a list, tuple or dictionary; or None."""
    return next((root.value for root in one_level("", x, classes())), None)


class Root(NamedTuple):
    """A foreign object that a function reaches, and what the function calls it."""

    name: str
    value: Any
    is_bound: bool = False  # part of a pytree that JAX takes apart


def one_level(name: str, x: Any, known: tuple[type, ...]) -> Iterator[Root]:
    """An object, or the items of a list, tuple or dictionary, where they are foreign."""
    if isinstance(x, known):
        yield Root(name, x)
    elif type(x) in (list, tuple):
        yield from (Root(f"{name}[{i}]", y) for i, y in enumerate(x) if isinstance(y, known))
    elif type(x) is dict:
        yield from (Root(f"{name}[{k!r}]", y) for k, y in list(x.items()) if isinstance(y, known))


def held_by(fn: Any, known: tuple[type, ...]) -> Iterator[Root]:
    """The foreign objects that a function closes over, names, has as defaults or is bound to."""
    seen: set[int] = set()
    while fn is not None and id(fn) not in seen:
        seen.add(id(fn))
        if isinstance(fn, functools.partial):
            yield from given_to(fn.func, fn.args, fn.keywords, known)
            fn = fn.func
        elif isinstance(fn, types.MethodType):
            yield from one_level("self", fn.__self__, known)
            fn = fn.__func__
        elif isinstance(fn, types.FunctionType):
            # Our own functions, the shim's and the bridge's answer for what they hold.
            if not fn.__globals__.get("__name__", "").startswith("statemap."):
                for name, value in _named(fn):
                    yield from one_level(name, value, known)
            fn = getattr(fn, "__wrapped__", None)
        elif (inner := getattr(fn, "__wrapped__", None)) is not None:
            fn = inner
        elif isinstance(fn, eqx.Module):  # or a method of one
            yield from _in_tree("self", getattr(fn, "__self__", fn), known)
            fn = getattr(fn, "__func__", None) or type(fn).__call__  # pyright: ignore
        else:
            fn = fn.__init__ if isinstance(fn, type) else type(fn).__call__


def given_to(
    fn: Callable, args: tuple, kwargs: dict[str, Any], known: tuple[type, ...]
) -> Iterator[Root]:
    """The foreign objects among the arguments of a function."""
    for i, arg in enumerate(args):
        for name, value, is_bound in _in_tree("", arg, known):
            yield Root(_parameter(fn, i) + name, value, is_bound)
    for name, arg in kwargs.items():
        yield from _in_tree(name, arg, known)


def _parameter(fn: Callable, i: int) -> str:
    try:
        found = list(inspect.signature(fn).parameters.values())[i]
    except (TypeError, ValueError, IndexError):
        return f"argument {i}"
    is_one = found.kind in (found.POSITIONAL_ONLY, found.POSITIONAL_OR_KEYWORD)
    return found.name if is_one else f"argument {i}"


def _in_tree(name: str, tree: Any, known: tuple[type, ...]) -> Iterator[Root]:
    is_leaf = lambda x: isinstance(x, known)
    for keys, x in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]:
        if isinstance(x, known):
            is_bound = not jax.tree_util.all_leaves([x])
            yield Root(name + jax.tree_util.keystr(keys), x, is_bound)


def _named(fn: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function closes over, names or has as defaults."""
    code = fn.__code__
    for name, cell in zip(code.co_freevars, fn.__closure__ or ()):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            pass
    for name in dict.fromkeys(_names(code)):
        if name in fn.__globals__:
            yield name, fn.__globals__[name]
    defaults = fn.__defaults__ or ()
    yield from zip(code.co_varnames[code.co_argcount - len(defaults) :], defaults)
    yield from (fn.__kwdefaults__ or {}).items()


def _names(code: types.CodeType) -> Iterator[str]:
    """The names that a function uses, and the functions defined in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
