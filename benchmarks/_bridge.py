"""9. A model of another library, mapped by that library and by ours: an ensemble of a net of linear
layers with batch norm, and with dropout where the library has streams for it. N is the number of
its blocks, each of five or eight arrays.

The limit is the model taken apart by hand: a list of its arrays under `jax.jit(jax.vmap(f))`.
"""

import dataclasses
import functools
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import statemap as sm

from ._contestants import BY_HAND, Call, Contestant, prepare, STATEMAP
from ._libraries import threaded
from ._timing import Pace, rounds, Row, rows_of, take_turns


BATCH, WIDTH, MEMBERS = 16, 8, 8
SIZES = (1, 4, 16)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The work: an ensemble of nets of `n` blocks, called with one batch."""

    n: int

    @property
    def x(self) -> jax.Array:
        return jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, WIDTH)), jnp.float32)


def by_path(tree: Any) -> dict[str, Any]:
    """The arrays of a pytree by name, keys as numbers."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    plain = lambda x: jr.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return {jax.tree_util.keystr(keys): plain(x) for keys, x in leaves if eqx.is_array(x)}


# Flax NNX.


def nnx_ensemble(work: Blocks) -> Any:
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.linear = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
            self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
            self.dropout = nnx.Dropout(0.1, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return x + self.dropout(nnx.relu(self.norm(self.linear(x))))

    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.blocks = nnx.List([Block(rngs) for _ in range(work.n)])

        def __call__(self, x: Any) -> Any:
            for block in self.blocks:
                x = block(x)
            return x

    make = nnx.split_rngs(splits=MEMBERS)(nnx.vmap(Net))
    return make(nnx.Rngs(0))


def nnx_read(ensemble: Any) -> dict[str, Any]:
    from flax import nnx

    return by_path(nnx.state(ensemble))


def nnx_by_hand(work: Blocks) -> Call:
    from flax import nnx

    graphdef, state = nnx.split(nnx_ensemble(work))
    leaves, treedef = jax.tree.flatten(state)  # of which `jax.jit` is fastest to take care

    def member(leaves: list[Any], x: Any) -> Any:
        net = nnx.merge(graphdef, treedef.unflatten(leaves))
        return net(x), jax.tree.leaves(nnx.state(net))

    jitted = jax.jit(jax.vmap(member, in_axes=(0, None)))
    read = lambda leaves: by_path(treedef.unflatten(leaves))
    return threaded(jitted, leaves, (work.x,), read)


def nnx_statemap(work: Blocks) -> Call:
    from statemap import bridge

    net, states = bridge.nnx(nnx_ensemble(work))
    mapped = sm.vmap2(net, in_axes=None, state_in_axes={0: ...})
    return threaded(mapped, states, (work.x,), lambda states: nnx_read(net.rebuild(states)))


def nnx_vmap(work: Blocks, graph: bool) -> Call:
    from flax import nnx

    ensemble, x = nnx_ensemble(work), work.x
    axes = nnx.StateAxes({...: 0}) if graph else 0
    mapped = nnx.vmap(lambda net, x: net(x), in_axes=(axes, None), graph=graph)
    jitted = nnx.jit(mapped, graph=graph)
    return Call(lambda: jitted(ensemble, x), lambda: nnx_read(ensemble))


def nnx_jit_partial(work: Blocks) -> Call:
    from flax import nnx

    ensemble, x, found = nnx_ensemble(work), work.x, []
    mapped = nnx.vmap(lambda net, x: net(x), in_axes=(0, None), graph=False)

    def step() -> Any:  # what it makes belongs to the first call
        if not found:
            found.append(nnx.jit_partial(mapped, ensemble, graph=False))
        return found[0](x)

    return Call(step, lambda: nnx_read(ensemble))


# Equinox.


class Block(eqx.Module):
    linear: eqx.nn.Linear
    norm: eqx.nn.BatchNorm

    def __init__(self, key: jax.Array):
        self.linear = eqx.nn.Linear(WIDTH, WIDTH, key=key)
        self.norm = eqx.nn.BatchNorm(WIDTH, "batch", mode="batch")

    def __call__(self, x: Any, state: Any) -> Any:
        y, state = self.norm(self.linear(x), state)
        return x + jax.nn.relu(y), state


class Net(eqx.Module):
    blocks: list[Block]

    def __init__(self, n: int, key: jax.Array):
        self.blocks = [Block(k) for k in jr.split(key, n)]

    def __call__(self, xs: Any, state: Any) -> Any:
        def one(x: Any, state: Any) -> Any:
            for block in self.blocks:
                x, state = block(x, state)
            return x, state

        return jax.vmap(one, in_axes=(0, None), out_axes=(0, None), axis_name="batch")(xs, state)


def equinox_ensemble(work: Blocks) -> tuple[Any, Any]:
    make = eqx.nn.make_with_state(functools.partial(Net, work.n))
    return eqx.filter_vmap(make)(jr.split(jr.key(0), MEMBERS))


def equinox_by_hand(work: Blocks) -> Call:
    net, states = equinox_ensemble(work)
    arrays, static = eqx.partition(net, eqx.is_array)
    weights, of_net = jax.tree.flatten(arrays)
    leaves, of_states = jax.tree.flatten(states)

    def member(weights: list[Any], leaves: list[Any], x: Any) -> Any:
        net = eqx.combine(of_net.unflatten(weights), static)
        out, states = net(x, of_states.unflatten(leaves))
        return out, jax.tree.leaves(states)

    jitted = jax.jit(jax.vmap(member, in_axes=(0, 0, None)))
    read = lambda leaves: by_path(of_states.unflatten(leaves))
    return threaded(lambda leaves, x: jitted(weights, leaves, x), leaves, (work.x,), read)


def equinox_vmap(work: Blocks) -> Call:
    net, states = equinox_ensemble(work)
    one = lambda net, states, x: net(x, states)
    jitted = eqx.filter_jit(eqx.filter_vmap(one, in_axes=(eqx.if_array(0), 0, None)))
    return threaded(lambda states, x: jitted(net, states, x), states, (work.x,), by_path)


def equinox_statemap(work: Blocks) -> Call:
    from statemap import bridge

    net, states = bridge.equinox(*equinox_ensemble(work))
    mapped = sm.vmap2(net, in_axes=None, state_in_axes={0: ...})
    return threaded(mapped, states, (work.x,), lambda states: by_path(net.rebuild(states)[1]))


NNX = (
    Contestant(BY_HAND, nnx_by_hand),
    Contestant(STATEMAP, nnx_statemap),
    Contestant("NNX, graph mode", functools.partial(nnx_vmap, graph=True), "flax"),
    Contestant("NNX, tree mode", functools.partial(nnx_vmap, graph=False), "flax"),
    Contestant("NNX, jit_partial", nnx_jit_partial, "flax"),
)
EQUINOX = (
    Contestant(BY_HAND, equinox_by_hand),
    Contestant(STATEMAP, equinox_statemap),
    Contestant("Equinox, filter_vmap", equinox_vmap, "equinox"),
)
LIBRARIES = {"NNX": NNX, "Equinox": EQUINOX}


def warm(library: str, n: int, pace: Pace) -> list[Row]:
    calls = prepare(LIBRARIES[library], Blocks(n))
    return rows_of(f"{library} model, warm call", n, take_turns(calls, pace))


def cold(library: str, n: int, pace: Pace) -> list[Row]:
    contestants, work = LIBRARIES[library], Blocks(n)
    able = prepare(contestants, work)

    def turn(contestant: Contestant) -> float:
        call = contestant.make(work)
        jax.clear_caches()
        gc.collect()
        begin = time.perf_counter()
        jax.block_until_ready(call.step())
        return time.perf_counter() - begin

    turns = {c.name: functools.partial(turn, c) for c in contestants if c.name in able}
    samples = rounds(turns, 3 if pace.quick else 5)
    return rows_of(f"{library} model, first call", n, samples)


def parts(pace: Pace) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    for library in LIBRARIES:
        for n in SIZES[:2] if pace.quick else SIZES:
            for measure in (warm, cold):
                label = f"{library}, {measure.__name__} call, N = {n}"
                yield label, functools.partial(measure, library, n, pace)
