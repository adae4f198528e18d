"""4. A step inside a jitted scan of 1,000 steps: does anything of the library stay in the program?

The time is that of the whole scan. Instructions are those of the optimised HLO, of all its
computations.
"""

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ._contestants import BY_HAND, Call, Contestant, prepare, STATEMAP
from ._libraries import (
    by_hand_map,
    Cells,
    cells_map,
    equinox_module_map,
    equinox_state_parts,
    nnx_cells,
    nnx_map,
    nnx_read,
    statemap_map,
    statemap_read,
    statemap_states,
    threaded,
)
from ._timing import Pace, Row, rows_of, take_turns, Target
from ._work import light, Work


STEPS = 1000
TIME, INSTRUCTIONS = "a scan of 1,000 steps", "instructions of that scan"


def inputs(work: Work) -> Any:
    """The argument of each step, along axis 0."""
    (x,) = work.args
    return jnp.linspace(0.0, 1.0, STEPS)[:, None, None] * x


def scanned(
    work: Work, mapped: Callable[..., Any], states: Any, read: Any, jit: Any = jax.jit
) -> Call:
    def simulate(states: Any, xs: Any) -> Any:
        def body(states: Any, x: Any) -> Any:
            out, states = mapped(states, x)
            return states, out

        states, outs = jax.lax.scan(body, states, xs)
        return outs, states

    return threaded(jit(simulate), states, (inputs(work),), read)


def by_hand(work: Work) -> Call:
    return scanned(work, by_hand_map(work), work.values(), dict)


def statemap(work: Work) -> Call:
    return scanned(work, statemap_map(work), statemap_states(work), statemap_read)


def equinox_module(work: Work) -> Call:
    cells = Cells(work.values())
    return scanned(work, equinox_module_map(work), cells, lambda c: c.values, eqx.filter_jit)


def equinox_state(work: Work) -> Call:
    return scanned(work, *equinox_state_parts(work), eqx.filter_jit)


def nnx_scan(work: Work, graph: bool) -> Call:
    from flax import nnx

    cells, mapped, xs = nnx_cells(work), nnx_map(work, graph), inputs(work)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0), graph=graph)
    def scan(cells: Any, x: Any) -> Any:
        return cells, mapped(cells, x)

    jitted = nnx.jit(lambda cells, xs: scan(cells, xs)[1], graph=graph)
    read = functools.partial(nnx_read, work, cells)
    return Call(lambda: jitted(cells, xs), read, lambda: jitted.lower(cells, xs))


def brainstate(work: Work) -> Call:
    import brainstate

    mapped, cells = cells_map(work, brainstate)
    jitted = brainstate.transform.jit(lambda xs: brainstate.transform.for_loop(mapped, xs))
    xs = inputs(work)

    def read() -> dict[str, Any]:
        return {name: cell.value for name, cell in cells.items()}

    return Call(lambda: jitted(xs), read, lambda: jitted.lower(xs))


CONTESTANTS = (
    Contestant(BY_HAND, by_hand),
    Contestant(STATEMAP, statemap),
    Contestant("Equinox, Module", equinox_module, "equinox"),
    Contestant("Equinox, nn.State", equinox_state, "equinox"),
    Contestant("NNX, graph mode", functools.partial(nnx_scan, graph=True), "flax"),
    Contestant("NNX, tree mode", functools.partial(nnx_scan, graph=False), "flax"),
    Contestant("brainstate, jit", brainstate, "brainstate"),
)


def instructions(call: Call) -> int:
    assert call.lower is not None
    compiled = call.lower().compile()
    text = getattr(compiled, "compiled", compiled).as_text()  # Equinox wraps it
    return len(re.findall(r"^\s+(?:ROOT )?%?[\w.-]+ = ", text, re.MULTILINE))


def measure(n: int, pace: Pace) -> list[Row]:
    calls = prepare(CONTESTANTS, light(n))
    rows = rows_of(TIME, n, take_turns(calls, pace), [Target(STATEMAP, 1.05)])
    counts = {name: [float(instructions(call))] for name, call in calls.items()}
    return rows + rows_of(INSTRUCTIONS, n, counts, [Target(STATEMAP, 1.0)], "instructions")


def parts(pace: Pace) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    for n in pace.sizes:
        yield f"{TIME}, N = {n}", functools.partial(measure, n, pace)
