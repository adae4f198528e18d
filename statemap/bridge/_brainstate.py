"""The bridge for brainstate. Tried with brainstate 0.5.4 and 0.6.0."""

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from .._foreign import classes
from .._jax import make_user_context
from .._keys import one_key
from .._settings import fact
from .._state import (
    BatchState,
    HiddenState,
    LongTermState,
    NonBatchState,
    ParamState,
    RandomState,
    ShortTermState,
    State,
)
from .._states import States
from .._values import dotted, function_name, Path, short
from . import _brainstate_private as private
from ._adopt import bridged, Kinds
from ._adopted import _Branch, Adopted
from ._brainstate_parts import (
    Attribute,
    Cell,
    difference,
    is_cell,
    look_up,
    put_arrays,
    View,
)
from ._given import as_arrays
from ._library import Library, Method, nodes_of


M = TypeVar("M")
bs = private.bs
private.value_of(bs.random.DEFAULT)  # a key from now on

_KINDS: dict[Any, type[State]] = {
    bs.ParamState: ParamState,
    bs.HiddenState: HiddenState,
    private.NonBatchState: NonBatchState,
    bs.ShortTermState: ShortTermState,
    bs.BatchState: BatchState,
    bs.LongTermState: LongTermState,
    bs.random.RandomState: RandomState,
}
_DEFAULT: Path = ("random", "DEFAULT")
# Part of the key of JAX's caches, for what a module traces with JAX's own transforms.
_settings_key = make_user_context(None)


def brainstate(
    module: M | Callable[[], M], *, key: Any = None, kinds: Kinds | None = None
) -> tuple[Adopted[M], States]:
    """A module of [brainstate](https://brainstate.readthedocs.io) as a function of states.

    ```python
    import brainstate
    import jax, jax.numpy as jnp
    import statemap as sm
    from statemap import bridge

    def make(*, key):
        return bridge.brainstate(
            lambda: brainstate.nn.init_all_states(brainstate.nn.GRUCell(3, 4)), key=key
        )

    cells, states, axes = sm.vmap2_new_states(make, key=jax.random.key(0), axis_size=8)
    step = sm.vmap2(cells, in_axes=None, state_in_axes=axes)
    out, states = step(states, jnp.ones(3))
    assert out.shape == states["h"].shape == (8, 4)

    cell = brainstate.nn.init_all_states(brainstate.nn.GRUCell(3, 4))
    model, states = bridge.brainstate(cell)
    out, states = model(states, jnp.ones(3))
    assert not cell.h.value.any()
    model.write_back(states)
    assert cell.h.value.tolist() == states["h"].tolist()
    ```

    Every `brainstate.State` becomes a state at its path, such as `layers.0.weight`, of the kind of
    the same name, with the name of its class as its tag. So does a JAX array that is an attribute,
    as a `LongTermState` with the tag `"Attribute"`. What else a module holds, NumPy arrays too, is
    static, and may not change in a call.

    `brainstate.random` draws from the state `random.DEFAULT`, which each lane has for itself. While
    a call is traced, other threads wait before they draw from brainstate's own.

    The settings of `brainstate.environ`, such as `dt` and `fit`, are those around the call of the
    mapping. A mapping is traced anew for others, if the model reads them. Under a `jax.jit` of
    your own, those of its first call stay, as they do in every function that JAX traces.

    **Arguments:**

    - `module`: a `brainstate.nn.Module`, with its states made (`brainstate.nn.init_all_states`).
        It stays as it is. Or, with `key`, a class or a function without arguments that makes one:
        what it draws, it draws from that key. So it has to be in what makes a population, since
        brainstate's own stream can't move on in a trace.
    - `key`: the key of `random.DEFAULT`. By default that of brainstate's own.
    - `kinds`: other kinds, by the class of state, `{MyState: sm.ShortTermState}`; or a function
        `(path, node) -> kind`, which may return None. `node.type` is the class.

    **Returns:**

    `(model, states)`: an [`statemap.bridge.Adopted`][], and its context. `write_back` writes to
    `brainstate.random.DEFAULT`, too.

    **Raises:**

    `TypeError` if `module` is none of brainstate's. `ValueError` if it has something that a copy of
    it could not have. A call raises `ValueError` if it uses a state that is none of the module's.
    `RuntimeError` while brainstate runs on the shim, after `compat.install(layers="brainstate")`.
    """
    if bs.State not in classes():
        raise RuntimeError(
            "brainstate runs on the shim, and its modules need no bridge.\n"
            "Wrong:  compat.install(layers='brainstate')\n"
            "        net, states = bridge.brainstate(module)\n"
            "Right:  step, states = compat.to_functional(module)\n"
            "or      compat.uninstall()  # before the bridge"
        )
    if key is not None:
        key = one_key(key, "bridge.brainstate")
    with private.LOCK:
        origin, key = _made(module, key)
        _refuse(origin)
        view = View(origin)
        library = _Module(view)
        tree = library.tree(view, private.value_of(private.DEFAULT) if key is None else key)
    return bridged(library, tree, kinds, _KINDS, is_cell, origin)


def _made(module: Any, key: Any) -> tuple[Any, Any]:
    """A module, made if need be; and its stream."""
    if key is None or isinstance(module, bs.graph.Node) or not callable(module):
        return module, key
    with private.running(key), bs.StateTraceStack():
        made = module()
        return made, private.DEFAULT.value


def _refuse(module: Any) -> None:
    if isinstance(module, bs.graph.Node):
        return
    mro = [cls.__module__ for cls in type(module).__mro__]
    if any(name.startswith("statemap.compat") for name in mro):
        raise TypeError(
            f"This `{type(module).__name__}` is a module of `statemap.compat`, which needs no "
            "bridge.\n"
            "Wrong:  bridge.brainstate(module)\n"
            "Right:  step, states = compat.to_functional(module)"
        )
    said = (
        f"`bridge.brainstate` takes a module of brainstate that is made, and was given {module!r}."
    )
    if isinstance(module, type):
        raise TypeError(
            f"{said}\n"
            "Wrong:  bridge.brainstate(Net)\n"
            "Right:  bridge.brainstate(Net())\n"
            "Or, with a key of its own:  bridge.brainstate(Net, key=jax.random.key(0))"
        )
    if callable(module):
        name = function_name(module)
        raise TypeError(
            f"{said} A function has no states of its own; those that it uses are a module's.\n"
            f"Wrong:  step, states = bridge.brainstate({name})\n"
            "Right:  model, states = bridge.brainstate(module)\n"
            f"        step = model.method({name})  # called with the module first"
        )
    raise TypeError(said)


class _Module(Library):
    """A module without its values: brainstate's own graph definition, and what that leaves out."""

    def __init__(self, view: View):
        module = view.nodes[()]
        self.cls, self.facts = type(module), view.facts
        self.name = self.cls.__name__
        self._of_origin = {i: dotted(path) for i, path in view.names.items()}
        copy = bs.graph.clone(module)
        put_arrays(copy, dict.fromkeys(view.arrays, ...))  # they may be tracers
        self._graphdef, _ = bs.graph.treefy_split(copy)
        self._hidden = {path: private.hidden_attributes(n) for path, n in view.nodes.items()}
        self._empty = {path: private.emptied(state) for path, state in view.states.items()}
        self._tied = {path for path, state in view.states.items() if state is private.DEFAULT}
        taken = {path[:1] for path in (*view.states, *view.arrays)} & {_DEFAULT[:1]}
        is_leaf = taken <= {*view.states, *view.arrays} and bool(taken)
        self._default = (dotted(_DEFAULT),) if is_leaf else _DEFAULT

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Module) and self.cls is other.cls and self.facts == other.facts

    def __hash__(self) -> int:
        return hash(self.cls)

    def __repr__(self) -> str:
        return f"{self.cls.__module__}.{self.cls.__qualname__}"

    def tree(self, view: View, key: Any) -> Any:
        """The container."""
        cells = [
            (path, Cell(type(state), as_arrays(private.value_of(state))))
            for path, state in view.states.items()
            if state is not private.DEFAULT
        ]
        cells += [(path, Cell(Attribute, x)) for path, x in view.arrays.items()]
        return _Branch.of([*cells, (self._default, Cell(type(private.DEFAULT), key))])

    def build(self, tree: Any) -> Any:
        values, _ = self._values(tree)
        states = {
            path: private.DEFAULT if path in self._tied else private.twin(state, values.pop(path))
            for path, state in self._empty.items()
        }
        module = bs.graph.unflatten(self._graphdef, states)
        put_arrays(module, values)
        for path, hidden in self._hidden.items():
            vars(look_up(module, path)).update(hidden)
        return module

    def take(self, built: Any, tree: Any) -> Any:
        return self._take(built, tree, self._values(tree)[1])

    def call(
        self, tree: Any, method: Method, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any]:
        _, key = self._values(tree)
        with private.running(key), _in_settings():
            built = self.build(tree)
            own = {id(x) for x in (private.DEFAULT, *bs.graph.states(built).values())}
            with bs.StateTraceStack() as used:
                try:
                    out = self.function(built, method)(*args, **kwargs)
                except AttributeError as error:
                    _explain(error)
                    raise
                finally:
                    foreign = private.put_back(used, own)
            if foreign:
                self._refuse_foreign(foreign[0])
            if private.backup(private.DEFAULT) is not None:
                raise ValueError(
                    f"A call of `{self.name}` laid the key of `brainstate.random.DEFAULT` aside "
                    "(`backup_key`), for which there is no state. Call `restore_key()` in it."
                )
            return out, self._take(built, tree, private.DEFAULT.value)

    def has_method(self, name: str) -> bool:
        return callable(getattr(self.cls, name, None))

    def current(self, origin: Any, tree: Any) -> Any:
        return self.tree(View(origin), self._values(tree)[1])

    def write(self, origin: Any, tree: Any) -> None:
        values, key = self._values(tree)
        view = View(origin)
        with private.LOCK:
            before = {path: state.value for path, state in view.states.items()}
            try:
                for path, state in view.states.items():
                    state.value = key if path in self._tied else values.pop(path)
            except BaseException:  # a hook of the state's, say
                for path, state in view.states.items():
                    state.restore_value(before[path])
                raise
            put_arrays(origin, values)
            private.DEFAULT.value = key

    def _values(self, tree: Any) -> tuple[dict[Path, Any], Any]:
        """The values in a container by path, and the key of `random.DEFAULT`."""
        values = {path: cell.value for path, cell in nodes_of(tree, is_cell)[0]}
        return values, values.pop(self._default)

    def _take(self, built: Any, tree: Any, key: Any) -> Any:
        view = View(built)
        new = self.tree(view, key)
        path = difference(view.facts, self.facts)
        if path is not None:
            before = self.build(tree)
            if view.has_same_values(View(before)):
                self._refuse_static(path, before, built)
        return new

    def _refuse_static(self, path: Path, before: Any, after: Any) -> NoReturn:
        shown = []
        for module in (before, after):
            try:
                shown.append(short(look_up(module, path)))
            except (KeyError, IndexError, TypeError):
                shown.append("nothing")
        raise ValueError(
            f"`{dotted(path)}` was changed from {shown[0]} to {shown[1]}, which is static in a "
            f"call of `{self.name}`, so that the change would be lost. Keep in a State what a call "
            "changes. What changes between calls, change in the module, and bridge that again, "
            "which takes the same context."
        )

    def _refuse_foreign(self, state: Any) -> NoReturn:
        known = self._of_origin.get(id(state))
        where = f"`{known}` of the module that it was made of" if known else "none of its own"
        raise ValueError(
            f"A call of `{self.name}` uses a `{type(state).__name__}` that is {where}: its value "
            "would be compiled in, and what is written to it be lost. The call is that of a copy. "
            "What reaches the state past the module's attributes (a closure, a method bound "
            "before, an object that brainstate does not look into) reaches the old one. Make it an "
            "attribute of the module, or of one in it. Instead of `nn.Vmap` and `nn.Map`, which "
            "close over their module, map the model.\n"
            "Wrong:  model, states = bridge.brainstate(brainstate.nn.Vmap(module))\n"
            "Right:  model, states = bridge.brainstate(module)\n"
            "        out, states = sm.vmap2(model)(states, x)"
        )


def _explain(error: AttributeError) -> None:
    if isinstance(error.obj, bs.graph.Node):
        error.add_note(
            f"(If `{error.name}` is a state that `init_state` makes, call "
            "`brainstate.nn.init_all_states(module)` before `bridge.brainstate(module)`.)"
        )


def _in_settings() -> Any:
    """What JAX caches in it is for the present settings alone."""
    return _settings_key(fact(tuple(sorted(private.settings().items(), key=str))))
