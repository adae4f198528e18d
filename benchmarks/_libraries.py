"""The same work in each library's own form. The limit comes first: JAX, by hand."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

import statemap as sm

from ._contestants import BY_HAND, Call, Contestant, STATEMAP
from ._work import Work


def threaded(
    fn: Callable[..., Any],
    states: Any,
    args: tuple[Any, ...],
    read: Callable[[Any], dict[str, Any]] = dict,
) -> Call:
    """A pure function whose states are handed on from one call to the next."""

    def step() -> Any:
        nonlocal states
        out, states = fn(states, *args)
        return out

    lower = getattr(fn, "lower", None)
    return Call(step, lambda: read(states), lower and (lambda: lower(states, *args)))


# By hand: a dictionary of arrays.


def by_hand_map(work: Work) -> Callable[..., Any]:
    def lane(values: dict[str, Any], *args: Any) -> Any:
        out, new = work.step(values, *args)
        return out, {**values, **new}

    return jax.vmap(lane, in_axes=(0, *work.in_axes))


def by_hand(work: Work, donate: bool = False) -> Call:
    jitted = jax.jit(by_hand_map(work), donate_argnums=(0,) if donate else ())
    return threaded(jitted, work.values(), work.args)


# statemap.


def statemap_map(work: Work, mapping: Callable[..., Any] = sm.vmap2, **options: Any) -> Any:
    def lane(states: sm.States, *args: Any) -> Any:
        out, new = work.step(states, *args)
        return out, states.update(new)

    axes = {0: sm.Everything()}
    return mapping(lane, in_axes=work.in_axes, state_in_axes=axes, state_out_axes=axes, **options)


def statemap_states(work: Work) -> sm.States:
    return sm.States({name: sm.ShortTermState(value) for name, value in work.values().items()})


def statemap_read(states: sm.States) -> dict[str, Any]:
    return {path[0]: state.value for path, state in states.items()}


def statemap(work: Work, donate: bool = False) -> Call:
    mapped = statemap_map(work, donate=donate)
    return threaded(mapped, statemap_states(work), work.args, statemap_read)


# Equinox: a Module that holds the arrays, and one with `eqx.nn.State`.


class Cells(eqx.Module):
    values: dict[str, Any]


def equinox_module_map(work: Work) -> Callable[..., Any]:
    def lane(cells: Cells, *args: Any) -> Any:
        out, new = work.step(cells.values, *args)
        return out, Cells({**cells.values, **new})

    return eqx.filter_vmap(lane, in_axes=(eqx.if_array(0), *work.in_axes))


def equinox_module(work: Work) -> Call:
    jitted = eqx.filter_jit(equinox_module_map(work))
    return threaded(jitted, Cells(work.values()), work.args, lambda cells: cells.values)


class Stateful(eqx.Module):
    indices: dict[str, eqx.nn.StateIndex]

    def __init__(self, values: dict[str, Any]):
        self.indices = {name: eqx.nn.StateIndex(value) for name, value in values.items()}


class _View:
    """States as a mapping from names to values, by a function that reads one."""

    def __init__(self, get: Callable[[str], Any]):
        self.get = get

    def __getitem__(self, name: str) -> Any:
        return self.get(name)


def equinox_state_parts(work: Work) -> tuple[Callable[..., Any], Any, Callable[[Any], Any]]:
    model, states = eqx.nn.make_with_state(Stateful)(work.values())
    indices = model.indices

    def lane(states: eqx.nn.State, *args: Any) -> Any:
        out, new = work.step(_View(lambda name: states.get(indices[name])), *args)
        for name, value in new.items():
            states = states.set(indices[name], value)
        return out, states

    def read(states: eqx.nn.State) -> dict[str, Any]:
        return {name: states.get(index) for name, index in indices.items()}

    return eqx.filter_vmap(lane, in_axes=(eqx.if_array(0), *work.in_axes)), states, read


def equinox_state(work: Work) -> Call:
    mapped, states, read = equinox_state_parts(work)
    return threaded(eqx.filter_jit(mapped), states, work.args, read)


# Flax NNX: a module of Variables, in graph mode and in tree mode. These import what they need, so
# that the others run without it.


def nnx_cells(work: Work) -> Any:
    from flax import nnx

    class Cells(nnx.Module):
        def __init__(self) -> None:
            for name, value in work.values().items():
                setattr(self, name, nnx.Variable(value))

    return Cells()


def nnx_map(work: Work, graph: bool) -> Callable[..., Any]:
    from flax import nnx

    def lane(cells: Any, *args: Any) -> Any:
        out, new = work.step(_View(lambda name: getattr(cells, name)[...]), *args)
        for name, value in new.items():
            getattr(cells, name)[...] = value
        return out

    cells_axis = nnx.StateAxes({...: 0}) if graph else 0
    return nnx.vmap(lane, in_axes=(cells_axis, *work.in_axes), graph=graph)


def nnx_read(work: Work, cells: Any) -> dict[str, Any]:
    return {name: getattr(cells, name)[...] for name in work.names}


def nnx_jit(work: Work, graph: bool) -> Call:
    from flax import nnx

    cells, jitted = nnx_cells(work), nnx.jit(nnx_map(work, graph), graph=graph)
    return Call(lambda: jitted(cells, *work.args), lambda: nnx_read(work, cells))


def nnx_cached_partial(work: Work) -> Call:
    from flax import nnx

    cells = nnx_cells(work)
    make = lambda: nnx.cached_partial(nnx.jit(nnx_map(work, graph=True)), cells)
    return Call(_made_at_first(make, work.args), lambda: nnx_read(work, cells))


def nnx_jit_partial(work: Work) -> Call:
    from flax import nnx

    cells = nnx_cells(work)
    make = lambda: nnx.jit_partial(nnx_map(work, graph=False), cells, graph=False)
    return Call(_made_at_first(make, work.args), lambda: nnx_read(work, cells))


def _made_at_first(make: Callable[[], Any], args: tuple[Any, ...]) -> Callable[[], Any]:
    """Calls what is made in the first call, to whose time the making belongs."""
    fn: Any = None

    def step() -> Any:
        nonlocal fn
        fn = fn or make()
        return fn(*args)

    return step


# brainstate, and what has its API: `lib` is the module.


def cells_map(work: Work, lib: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The mapped function, and the states that it reads and writes on its own account."""
    cells = {name: lib.ShortTermState(value) for name, value in work.values().items()}

    def lane(*args: Any) -> Any:
        out, new = work.step(_View(lambda name: cells[name].value), *args)
        for name, value in new.items():
            cells[name].value = value
        return out

    axes = {0: lib.util.filter.OfType(lib.ShortTermState)}
    options = dict(in_axes=work.in_axes, state_in_axes=axes, state_out_axes=axes)
    return lib.transform.vmap2(lane, **options), cells


def cells_call(work: Work, lib: Any, jit: bool) -> Call:
    mapped, cells = cells_map(work, lib)

    def read() -> dict[str, Any]:
        return {name: cell.value for name, cell in cells.items()}

    if jit:
        jitted = lib.transform.jit(mapped)
        return Call(lambda: jitted(*work.args), read)
    # What is not compiled is done piece by piece, and its output may be ready before the rest.
    return Call(lambda: mapped(*work.args), read, wait=read)


def brainstate(work: Work, jit: bool = True) -> Call:
    import brainstate

    return cells_call(work, brainstate, jit)


HAND = Contestant(BY_HAND, by_hand)
HAND_DONATED = Contestant(f"{BY_HAND}, donated", functools.partial(by_hand, donate=True))
OURS = Contestant(STATEMAP, statemap)
OURS_DONATED = Contestant(f"{STATEMAP}, donated", functools.partial(statemap, donate=True))
PEERS = (
    Contestant("Equinox, Module", equinox_module, "equinox"),
    Contestant("Equinox, nn.State", equinox_state, "equinox"),
    Contestant("NNX, graph mode", functools.partial(nnx_jit, graph=True), "flax"),
    Contestant("NNX, cached_partial", nnx_cached_partial, "flax"),
    Contestant("NNX, tree mode", functools.partial(nnx_jit, graph=False), "flax"),
    Contestant("NNX, jit_partial", nnx_jit_partial, "flax"),
    Contestant("brainstate, jit", brainstate, "brainstate"),
)
