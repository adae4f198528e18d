"""6. Lanes laid over eight devices, which are parts of one CPU.

The limit is `jax.jit(jax.vmap(f))` on arrays that lie on the devices already. `jax.pmap` and what
is made of it want an axis of devices in front: four lanes on each of them.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import statemap as sm

from ._contestants import BY_HAND, Call, Contestant, prepare, STATEMAP
from ._libraries import by_hand_map, Cells, statemap_map, statemap_read, threaded
from ._timing import Pace, Row, rows_of, take_turns, Target
from ._work import light, Work


DEVICES = 8
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}",
}


def mesh() -> Mesh:
    return Mesh(np.array(jax.devices()), ("devices",))


def laid_out(tree: Any) -> Any:
    """Arrays with their lanes over the devices."""
    return jax.device_put(tree, NamedSharding(mesh(), PartitionSpec("devices")))


def folded(tree: Any) -> Any:
    """Arrays with an axis of devices, as `jax.pmap` wants and returns them."""
    return laid_out(jax.tree.map(lambda x: x.reshape(DEVICES, -1, *x.shape[1:]), tree))


def by_hand(work: Work) -> Call:
    jitted = jax.jit(by_hand_map(work))
    return threaded(jitted, laid_out(work.values()), laid_out(work.args))


def statemap(work: Work, donate: bool = False) -> Call:
    mapping = functools.partial(sm.pmap2, devices=mesh(), axis_name="devices")
    mapped = statemap_map(work, mapping, donate=donate)
    values = laid_out(work.values())
    states = sm.States({name: sm.ShortTermState(value) for name, value in values.items()})
    return threaded(mapped, states, laid_out(work.args), statemap_read)


def pmap(work: Work) -> Call:
    mapped = jax.pmap(by_hand_map(work))
    return threaded(mapped, folded(work.values()), folded(work.args))


def filter_pmap(work: Work) -> Call:
    def lane(cells: Cells, *args: Any) -> Any:
        out, new = work.step(cells.values, *args)
        return out, Cells(new)

    mapped = eqx.filter_pmap(eqx.filter_vmap(lane))
    states = Cells(folded(work.values()))
    return threaded(mapped, states, folded(work.args), lambda cells: cells.values)


def brainstate(work: Work) -> Call:
    import brainstate as bst

    values = folded(work.values())
    cells = {name: bst.ShortTermState(value) for name, value in values.items()}

    def read() -> dict[str, Any]:
        return {name: cell.value for name, cell in cells.items()}

    def four_lanes(x: Any) -> Any:
        out, new = jax.vmap(work.step)(read(), x)
        for name, value in new.items():
            cells[name].value = value
        return out

    axes = {0: bst.util.filter.OfType(bst.ShortTermState)}
    mapped = bst.transform.pmap2(four_lanes, state_in_axes=axes, state_out_axes=axes)
    jitted, args = bst.transform.jit(mapped), folded(work.args)
    return Call(lambda: jitted(*args), read)


CONTESTANTS = (
    Contestant(BY_HAND, by_hand),
    Contestant(f"{STATEMAP}, pmap2", statemap),
    Contestant("jax.pmap", pmap, "jax"),
    Contestant("Equinox, filter_pmap", filter_pmap, "equinox"),
    Contestant("brainstate, jit(pmap2)", brainstate, "brainstate"),
)


def measure(n: int, pace: Pace) -> list[Row]:
    if len(jax.devices()) != DEVICES:
        raise RuntimeError(f"This case needs XLA_FLAGS={ENVIRONMENT['XLA_FLAGS']}.")
    calls = prepare(CONTESTANTS, light(n))
    targets = [Target(f"{STATEMAP}, pmap2", 1.1)]
    return rows_of("call over eight devices", n, take_turns(calls, pace), targets)


def parts(pace: Pace) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    for n in (1, 100):
        yield f"call over eight devices, N = {n}", functools.partial(measure, n, pace)
