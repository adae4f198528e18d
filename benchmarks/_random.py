"""5. Random draws: each lane draws once, or ten times, and one of the states is moved by the sum.

The limit follows the law of statemap's random states and so draws the same numbers: the key is
split for the lanes inside the jit, and a lane splits its own key for each draw. Below it are two
other ways to write it by hand: with one split for all draws of a lane, and with the keys split
outside the jit.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.random as jr

import statemap as sm

from ._contestants import BY_HAND, Call, Contestant, prepare, STATEMAP
from ._libraries import Cells, nnx_read, statemap_read, statemap_states, threaded
from ._timing import Pace, Row, rows_of, take_turns, Target
from ._work import LANES, light, Values, WIDTH, Work


def move(values: Values, names: list[str], x: Any, noise: Any) -> tuple[Any, dict[str, Any]]:
    new = {name: values[name] * 0.9 + x for name in names}
    # If all took the noise, XLA would fuse the draws into the update of each of them.
    return x.sum(), {**new, names[0]: new[names[0]] + noise}


def draw_by_law(key: Any, draws: int) -> Any:
    noise = 0.0
    for _ in range(draws):
        key, sub = jr.split(key)
        noise = noise + jr.normal(sub, (WIDTH,))
    return noise


def draw_at_once(key: Any, draws: int) -> Any:
    return sum(jr.normal(sub, (WIDTH,)) for sub in jr.split(key, draws))


def by_hand(
    work: Work,
    draws: int,
    draw: Callable[[Any, int], Any] = draw_by_law,
    split_inside: bool = True,
) -> Call:
    def lane(values: Any, key: Any, x: Any) -> Any:
        return move(values, work.names, x, draw(key, draws))

    mapped = jax.vmap(lane)

    def step(states: Any, x: Any) -> Any:
        values, key = states
        keys = jr.split(key, LANES + 1)
        out, values = mapped(values, keys[1:], x)
        return out, (values, keys[0])

    if split_inside:
        step = jax.jit(step)
    else:
        mapped = jax.jit(mapped)
    return threaded(step, (work.values(), jr.PRNGKey(0)), work.args, lambda states: states[0])


def statemap(work: Work, draws: int) -> Call:
    def lane(states: sm.States, x: Any) -> Any:
        noise: Any = 0.0
        for _ in range(draws):
            drawn, states = sm.random.normal(states, "rng", (WIDTH,))
            noise = noise + drawn
        out, new = move(states, work.names, x, noise)
        return out, states.update(new)

    axes = {0: sm.ShortTermState}
    mapped = sm.vmap2(lane, state_in_axes=axes, state_out_axes=axes)
    states = statemap_states(work).merge(sm.States(rng=sm.RandomState(0)))
    return threaded(mapped, states, work.args, statemap_read)


class RandomCells(eqx.Module):
    cells: Cells
    key: Any


def equinox(work: Work, draws: int) -> Call:
    def lane(cells: Cells, key: Any, x: Any) -> Any:
        out, new = move(cells.values, work.names, x, draw_by_law(key, draws))
        return out, Cells(new)

    @eqx.filter_jit
    def step(model: RandomCells, x: Any) -> Any:
        keys = jr.split(model.key, LANES + 1)
        out, cells = eqx.filter_vmap(lane)(model.cells, keys[1:], x)
        return out, RandomCells(cells, keys[0])

    model = RandomCells(Cells(work.values()), jr.key(0))
    return threaded(step, model, work.args, lambda model: model.cells.values)


def nnx(work: Work, draws: int) -> Call:
    from flax import nnx

    class RandomCells(nnx.Module):
        def __init__(self) -> None:
            self.rngs = nnx.Rngs(0)
            for name, value in work.values().items():
                setattr(self, name, nnx.Variable(value))

    @nnx.jit
    @nnx.split_rngs(splits=LANES)
    @nnx.vmap(in_axes=(nnx.StateAxes({...: 0}), 0))
    def step(cells: RandomCells, x: Any) -> Any:
        noise = sum(jr.normal(cells.rngs(), (WIDTH,)) for _ in range(draws))
        out, new = move(nnx_read(work, cells), work.names, x, noise)
        for name, value in new.items():
            getattr(cells, name)[...] = value
        return out

    cells = RandomCells()
    return Call(lambda: step(cells, *work.args), lambda: nnx_read(work, cells))


def brainstate(work: Work, draws: int) -> Call:
    import brainstate as bst

    bst.random.seed(0)
    cells = {name: bst.ShortTermState(value) for name, value in work.values().items()}

    def read() -> dict[str, Any]:
        return {name: cell.value for name, cell in cells.items()}

    def lane(x: Any) -> Any:
        noise = sum(bst.random.normal(size=(WIDTH,)) for _ in range(draws))
        out, new = move(read(), work.names, x, noise)
        for name, value in new.items():
            cells[name].value = value
        return out

    axes = {0: bst.util.filter.OfType(bst.ShortTermState)}
    step = bst.transform.jit(bst.transform.vmap2(lane, state_in_axes=axes, state_out_axes=axes))
    return Call(lambda: step(*work.args), read)


def contestants(draws: int) -> tuple[Contestant, ...]:
    def one(name: str, make: Any, *needs: str, same_numbers: bool = True, **options: Any) -> Any:
        return Contestant(
            name, functools.partial(make, draws=draws, **options), *needs, same_numbers=same_numbers
        )

    return (
        one(BY_HAND, by_hand),
        one(f"{BY_HAND}, one split a lane", by_hand, draw=draw_at_once, same_numbers=False),
        one(f"{BY_HAND}, split outside", by_hand, split_inside=False),
        one(STATEMAP, statemap),
        one("Equinox, Module", equinox, "equinox"),
        one("NNX, split_rngs", nnx, "flax", same_numbers=False),
        one("brainstate, jit", brainstate, "brainstate", same_numbers=False),
    )


def measure(name: str, draws: int, n: int, pace: Pace) -> list[Row]:
    calls = prepare(contestants(draws), light(n))
    return rows_of(name, n, take_turns(calls, pace), [Target(STATEMAP, 1.0)])


def parts(pace: Pace) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    for name, draws in (("one draw a lane", 1), ("ten draws a lane", 10)):
        for n in (10,) if pace.quick else pace.sizes:  # draws take long to compile
            yield f"{name}, N = {n}", functools.partial(measure, name, draws, n, pace)
