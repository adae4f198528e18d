"""States and their kinds: immutable pytree nodes that hold a value, or stand for one."""

import dataclasses
from typing import Any, ClassVar, Generic, NamedTuple, overload, TYPE_CHECKING

import equinox as eqx
import jax
import numpy as np
import wadler_lindig as wl
from jax.typing import ArrayLike

from ._annotations import checked
from ._keys import as_key
from ._rest import Rest, split
from ._treescope import below, show_node
from ._values import dotted, fit, own, Path, PyTree, refuse_recursive, Struct, through


if TYPE_CHECKING:
    from typing_extensions import TypeVar  # with defaults, which Python has from 3.13 on

    T = TypeVar("T", default=Any)

    class _Module:
        """What type checkers take for `equinox.Module`, by whose declaration each class below
        would have an `__init__` of its fields and no `__hash__`.
        """

        __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

else:
    from typing import TypeVar

    T = TypeVar("T")
    _Module = eqx.Module

S = TypeVar("S", bound="State[Any]")
A = TypeVar("A", bound="State[jax.Array]")
Number = complex | np.ndarray | np.generic  # what becomes an array


class Handle(NamedTuple):
    """Where the value of a declared state is kept: static data of a State without a value."""

    path: Path
    model: str | None  # the fingerprint of the model that declared it
    struct: Struct


class State(_Module, Generic[T]):
    """A piece of state: a value, with a kind (its class), a name and a tag.

    A State is immutable and a pytree node: its value is the child, the rest is static. It is
    used in two ways. As a field of a model it *declares* a slot; [`statemap.make_with_states`][]
    moves the value into a [`statemap.States`][] context and leaves a *handle* in the model, with
    which the value is looked up: `states[self.v]`. In a pytree of your own (a dict, a module) it
    carries its value around.

    ```python
    import jax.numpy as jnp
    import statemap as sm

    v = sm.ShortTermState(jnp.zeros(3), tag="membrane")
    v = v.set(jnp.ones(3))  # a new State
    assert v.value.sum() == 3
    ```

    The kinds say to a filter what a state is: `ParamState` for what is trained, `ShortTermState`
    for what lasts a step or a sequence, and below it `HiddenState` for a hidden layer;
    `LongTermState` for what lasts longer (a running mean), and below it `BatchState` for what
    always has a batch axis. Two kinds differ in what mappings do with them: a `NonBatchState`
    never has lanes, and a `RandomState`, which holds random keys, gives each lane its own. Make
    your own by subclassing. (The kinds are brainstate's, see `brainstate.State`.)
    """

    data: Any
    name: str | None = eqx.field(static=True, default=None)
    tag: str | None = eqx.field(static=True, default=None)
    handle: Handle | None = eqx.field(static=True, default=None)
    rest: Rest | None = eqx.field(static=True, default=None)  # what of the value is no array

    # Of each array in `data`, how many trailing axes are not the user's to map over.
    trailing_axes = 0
    # Whether a mapped function must keep the dtypes and the shapes of `data`. (Of the latter None
    # says that it may give any back, and False that axes may come, go and move.)
    fixed_dtype = True
    fixed_shape: ClassVar[bool | None] = True

    @overload
    def __init__(
        self: "State[jax.Array]", value: "Number", name: str | None = None, tag: str | None = None
    ): ...

    @overload
    def __init__(self, value: T, name: str | None = None, tag: str | None = None): ...

    def __init__(self, value: Any, name: str | None = None, tag: str | None = None):
        """**Arguments:**

        - `value`: a pytree of arrays, such as an array, a dictionary of them or a layer. NumPy
            arrays become JAX arrays. A number does, too, where it is the whole value or sits in a
            dictionary, list or tuple. What else is no array (an activation function, a number or
            flag of a module) is static: it must be hashable, and stays as it is. Containers are
            made anew here and wherever a value comes or goes, so that nobody changes a state by
            changing a dictionary.
        - `name`: a second way to look the state up in a context, unique there.
        - `tag`: a label for filters; see [`statemap.WithTag`][].

        **Raises:**

        `TypeError` if the value holds no array and is no module, or holds what is neither an
        array nor hashable.
        """
        kind = type(self).__name__
        refuse_recursive(value, f"The value of a {kind}")
        if any(map(is_state, jax.tree.leaves(value, is_leaf=is_state))):
            raise TypeError(
                f"The value of a {kind} is a pytree of arrays, and this one holds a State. A "
                "state holds no other: put both into a model, or a dictionary of States.\n"
                f"Wrong:  sm.{kind}(sm.{kind}(x))\n"
                f"Right:  sm.{kind}(x)"
            )
        self.data, self.rest = split(value, kind)
        self.name = name
        self.tag = tag
        self.handle = None

    if not TYPE_CHECKING:

        def __class_getitem__(cls, hint):
            if isinstance(hint, TypeVar):
                return super().__class_getitem__(hint)
            return checked(cls, hint)

    @property
    def is_handle(self) -> bool:
        """Whether this State stands for a value in a context, rather than holding one."""
        return self.handle is not None

    @property
    def value(self) -> T:
        """The value. A handle has none: it is in the context, `states[handle]`."""
        if self.handle is not None:
            raise AttributeError(
                f"This {type(self).__name__} is the handle of the state "
                f"`{dotted(self.handle.path)}`, without a value of its own.\n"
                "Wrong:  self.v.value\n"
                "Right:  states[self.v]"
            )
        return read(self, own(self.data))

    @property
    def struct(self) -> PyTree:
        """The value with a `jax.ShapeDtypeStruct` in the place of each array, of a handle too."""
        return Struct(self.value).tree if self.handle is None else self.handle.struct.tree

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value, where it is a single array."""
        return self._single("shape")

    @property
    def dtype(self) -> Any:
        """The dtype of the value, where it is a single array."""
        return self._single("dtype")

    @property
    def ndim(self) -> int:
        """The number of axes of the value, where it is a single array."""
        return self._single("ndim")

    @overload
    def set(self: A, value: ArrayLike) -> A: ...

    @overload
    def set(self: S, value: T) -> S: ...

    def set(self: S, value: Any) -> S:
        """A State of the same kind, name and tag with another value.

        **Arguments:**

        - `value`: of the same structure, shapes and dtypes as the present one.

        **Raises:**

        `ValueError` if structure, shape or dtype differ.
        """
        if self.handle is not None:
            raise ValueError(
                f"`{dotted(self.handle.path)}` is a handle, without a value to replace.\n"
                "Wrong:  self.v.set(value)\n"
                "Right:  states = states.set(self.v, value)"
            )
        label = self.name or type(self).__name__
        return with_fields(self, data=fit(self.data, write(self, value, label), label))

    def _no_array(self, *_: Any) -> Any:
        where = self.name if self.handle is None else dotted(self.handle.path)
        kind, key = type(self).__name__, "v" if where is None else str(where).rpartition(".")[2]
        right = f"self.{key}.value + 1" if self.handle is None else f"states[self.{key}] + 1"
        raise TypeError(
            f"A {kind} is no array, and takes part in no arithmetic: its value does.\n"
            f"Wrong:  self.{key} + 1\n"
            f"Right:  {right}"
        )

    if not TYPE_CHECKING:

        def __setattr__(self, name, value):
            if name == "value":  # as one writes to states that are mutable
                wrong = "Wrong:  self.v.value = x\nRight:  states = states.set(self.v, x)"
                raise AttributeError(f"A {type(self).__name__} is immutable.\n{wrong}")
            super().__setattr__(name, value)

        __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _no_array
        __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _no_array
        __pow__ = __rpow__ = __matmul__ = __rmatmul__ = __neg__ = __abs__ = _no_array
        __lt__ = __le__ = __gt__ = __ge__ = __and__ = __rand__ = __or__ = __ror__ = _no_array
        __float__ = __int__ = _no_array

    def encode(self, value: Any) -> PyTree:
        """From what a user gives to what is stored."""
        return value

    def decode(self, data: Any) -> Any:
        """From what is stored to what a user sees."""
        return data

    def _single(self, attribute: str) -> Any:
        leaves = Struct(self.struct).arrays
        if len(leaves) != 1:
            raise AttributeError(
                f"This {type(self).__name__} holds {len(leaves)} arrays; ask "
                f"`.struct` for the {attribute} of each."
            )
        return getattr(leaves[0], attribute)

    def _shown(self) -> tuple[str, Any, list[tuple[str, Any]]]:
        """What it is a handle of, if it is one; its value, or the shapes of that; the rest."""
        static = {k: v for k, v in static_fields(self).items() if k != "rest"}
        named = [(k, v) for k, v in static.items() if v is not None]
        if self.handle is not None:
            return f"handle of `{dotted(self.handle.path)}`", self.handle.struct.tree, named
        return "", self.data if self.rest is None else self.rest.fill(self.data), named

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        return self._node(subtree_renderer, path, below(path, ".value"))

    def _node(self, render: Any, path: str | None, value_path: str | None) -> Any:
        """What treescope shows; the value need not be found at the State, but in a context."""
        handle, value, named = self._shown()
        if handle or isinstance(value, jax.ShapeDtypeStruct):
            shown = eqx.tree_pformat(value, struct_as_array=True, width=10**6)
        else:
            shown = render(value, path=value_path)
        parts = [("", handle)] * bool(handle) + [("", shown)]
        return show_node(type(self), parts + [(f"{k}=", repr(v)) for k, v in named], path)

    def __pdoc__(self, **kwargs: Any) -> wl.AbstractDoc:
        handle, value, named = self._shown()
        docs = [wl.TextDoc(handle)] * bool(handle) + [wl.pdoc(value, **kwargs)]
        docs += wl.named_objs(named, **kwargs)
        return wl.bracketed(
            begin=wl.TextDoc(type(self).__name__ + "("),
            docs=docs,
            sep=wl.comma,
            end=wl.TextDoc(")"),
            indent=kwargs["indent"],
        )

    def __repr__(self) -> str:
        return eqx.tree_pformat(self, struct_as_array=True)


class ParamState(State[T]):
    """A parameter: what an optimiser changes. A kind below `State`."""


class ShortTermState(State[T]):
    """A value that lasts a step or a sequence, such as a membrane potential. A kind below
    `State`; `HiddenState` is one of it.
    """


class LongTermState(State[T]):
    """A value that lasts beyond a sequence, such as a running mean. A kind below `State`;
    `BatchState` is one of it.
    """


class HiddenState(ShortTermState[T]):
    """The hidden state of a recurrent layer. It is a `ShortTermState`, which filters for those
    match.
    """


class BatchState(LongTermState[T]):
    """A value that always has a batch axis. It is a `LongTermState`, which filters for those
    match.
    """


class NonBatchState(State[T]):
    """A value that never has lanes: in every mapping, and when states are made in lanes, all
    lanes share it. A kind of its own, below `State` alone.
    """


class RandomState(State[jax.Array]):
    """A stream of random numbers: it holds a key, which draws advance. A kind of its own, below
    `State` alone.

    Draw with [`statemap.random`][]. Used inside a map, each lane draws from a key of its own and
    the state itself moves on once; the exact law is on the page "Concepts".

    `states[rng]` is a new-style key. It is stored as the key's data, an array of `uint32`, which
    every tool that saves or moves arrays takes, and which `jax.jit` dispatches fast.

    That a lane draws what it would draw alone holds for JAX's default keys, Threefry. Keys of
    another implementation (`impl="rbg"`) draw other numbers under any `jax.vmap`.
    """

    impl: str = eqx.field(static=True, default="threefry2x32")

    trailing_axes = 1

    def __init__(self, key: Any, name: str | None = None, tag: str | None = None):
        """**Arguments:**

        - `key`: a key (`jax.random.key`), a legacy key (`jax.random.PRNGKey`) or an integer seed;
            or an array of keys, one a lane.
        - `name`: as for any State.
        - `tag`: as for any State.

        **Raises:**

        `TypeError` if `key` is none of these.
        """
        key = as_key(key)
        self.data: Any = jax.random.key_data(key)
        self.name = name
        self.tag = tag
        self.handle: Handle | None = None
        self.rest: Rest | None = None
        self.impl = str(jax.random.key_impl(key))

    def encode(self, value: Any) -> PyTree:
        key = as_key(value)
        if str(jax.random.key_impl(key)) != self.impl:
            raise ValueError(
                f"This RandomState holds a key of the implementation `{self.impl}`, and was "
                f"given one of `{jax.random.key_impl(key)}`."
            )
        return jax.random.key_data(key)

    def decode(self, data: Any) -> Any:
        return jax.random.wrap_key_data(data, impl=self.impl)


def read(state: State, data: PyTree) -> Any:
    """The value that a user sees, from what is stored of a State."""
    value = data if state.rest is None else state.rest.fill(data)
    return value if type(state).decode is State.decode else through(state.decode, value)


def write(state: State, value: Any, label: str) -> PyTree:
    """What is stored, from a value that a user gives; the other way round than `read`.

    **Raises:**

    `ValueError` if what is no array in it is not what the State has.
    """
    if type(state).encode is not State.encode:
        value = through(state.encode, value)
    return value if state.rest is None else state.rest.take(value, label)


def static_fields(state: State) -> dict[str, Any]:
    """The static fields of a State, those of a user's own kind too, without the handle."""
    return {
        f.name: getattr(state, f.name)
        for f in dataclasses.fields(state)
        if f.name not in ("data", "handle")
    }


def with_fields(state: S, **changed: Any) -> S:
    """A copy of a State with some fields replaced, past `__init__`."""
    new = object.__new__(type(state))
    for f in dataclasses.fields(state):
        object.__setattr__(new, f.name, changed.get(f.name, getattr(state, f.name)))
    return new


def is_state(x: Any) -> bool:
    return isinstance(x, State)
