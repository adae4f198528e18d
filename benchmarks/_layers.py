"""10. brainstate's own models on its own engine and on ours: `compat.install(layers="brainstate")`.

An engine is put under the whole package, so that each has a process of its own, and the two take
turns. Calls are made as they are, and inside brainstate's `jit`. N is the number of layers, units,
neurons or members.
"""

import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ._contestants import Contestant, taking_part
from ._timing import Pace, rounds, Row, rows_of, Target


THEIRS, OURS = "brainstate", "statemap under brainstate"
STEPS, WIDTH = 20, 8
PLAIN, JIT = "as it is", "jitted"
ROUNDS = 9


# In the processes of the engines.


def layer_stack(bs: Any, n: int) -> tuple[Any, Callable[[], Any]]:
    """Linear layers with batch norm, on a batch."""
    nn = bs.nn
    block = lambda: (nn.Linear(WIDTH, WIDTH), nn.BatchNorm0d((WIDTH,)), nn.ReLU())
    net = nn.Sequential(*(layer for _ in range(n) for layer in block()))
    x = np.linspace(-1, 1, 16 * WIDTH, dtype=np.float32).reshape(16, WIDTH)

    def call() -> Any:
        with bs.environ.context(fit=True):
            return net(x)

    return net, call


def gru(bs: Any, n: int) -> tuple[Any, Callable[[], Any]]:
    """A recurrent cell in a loop over time."""
    cell = bs.nn.GRUCell(WIDTH, n)
    bs.nn.init_all_states(cell, 4)
    xs = np.linspace(-1, 1, STEPS * 4 * WIDTH, dtype=np.float32).reshape(STEPS, 4, WIDTH)
    return cell, lambda: bs.transform.for_loop(cell, xs)[-1]


def spiking(bs: Any, n: int) -> tuple[Any, Callable[[], Any]]:
    """Leaky integrate-and-fire neurons with units, in a loop over time."""
    import brainunit as u
    import jax.numpy as jnp

    class Neurons(bs.nn.Module):
        def init_state(self) -> None:
            self.v = bs.HiddenState(jnp.full(n, -65.0) * u.mV)

        def update(self, current: Any) -> Any:
            slope = (-65.0 * u.mV - self.v.value + current * (1.0 * u.ohm)) / (10.0 * u.ms)
            v = self.v.value + slope * bs.environ.get("dt")
            spikes = v > -50.0 * u.mV
            self.v.value = u.math.where(spikes, -65.0 * u.mV, v)
            return spikes

    neurons = Neurons()
    bs.nn.init_all_states(neurons)
    currents = np.linspace(0, 1000, STEPS, dtype=np.float32) * u.mA

    def call() -> Any:
        with bs.environ.context(dt=0.1 * u.ms):
            return bs.transform.for_loop(neurons.update, currents).sum()

    return neurons, call


def members(bs: Any, n: int) -> tuple[Any, Callable[[], Any]]:
    """A population: a recurrent cell for each member."""
    population = bs.nn.Map(bs.nn.GRUCell(WIDTH, WIDTH), init_map_size=n)
    population.init_all_states()
    xs = np.linspace(-1, 1, n * WIDTH, dtype=np.float32).reshape(n, WIDTH)
    return population, lambda: population(xs)


MODELS = {"layer stack": layer_stack, "GRU in a loop": gru, "LIF": spiking, "Map": members}
SIZES = {"layer stack": (1, 8), "GRU in a loop": (8, 128), "LIF": (10, 1000), "Map": (4, 64)}


def serve(ours: bool) -> None:
    """Answers one line of JSON with another: a call is made ready, or made so many times."""
    if ours:
        from statemap import compat

        compat.install(layers="brainstate")
    import brainstate as bs
    import jax

    answer = functools.partial(print, flush=True, file=sys.stdout)
    sys.stdout = sys.stderr  # what models print
    calls: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        ask = json.loads(line)
        if ask["do"] == "make":
            bs.random.seed(0)
            model, call = MODELS[ask["model"]](bs, ask["n"])
            calls = {PLAIN: call, JIT: bs.transform.jit(call)}
            numbers = []
            for made in calls.values():
                numbers += [float(np.sum(np.asarray(made(), float))) for _ in range(2)]
            states = jax.tree.leaves([s.value for s in model.states().values()])
            numbers += sorted(float(np.sum(np.abs(x))) for x in states if _is_real(x))
            answer(json.dumps(numbers))
        else:
            call, count = calls[ask["how"]], ask["count"]
            begin = time.perf_counter()
            for _ in range(count):
                out = call()
            jax.block_until_ready(out)
            answer(json.dumps((time.perf_counter() - begin) / count))


def _is_real(x: Any) -> bool:
    return getattr(getattr(x, "dtype", None), "kind", "") in "biuf"


# In the process that measures.


class Engine:
    """One of the two processes."""

    def __init__(self, name: str):
        flag = str(name == OURS)
        code = f"from benchmarks._layers import serve; serve({flag})"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, "-c", code], text=True, **pipes)

    def ask(self, **what: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"A process ended at {what}; what it printed is above.")
        return json.loads(line)

    def turn(self, how: str, seconds: float) -> Callable[[], float]:
        """Makes as many calls as take about so long, and tells how long one took."""
        one = self.ask(do="time", how=how, count=1)
        count = max(int(seconds / max(one, 1e-6)), 1)
        return lambda: self.ask(do="time", how=how, count=count)


@functools.cache
def engines() -> dict[str, Engine]:
    contestants = [Contestant(THEIRS, Engine, "brainstate"), Contestant(OURS, Engine, "brainstate")]
    return {c.name: c.make(c.name) for c in taking_part(contestants)}


def measure(model: str, n: int, pace: Pace) -> list[Row]:
    able, rows = engines(), []
    made = {name: engine.ask(do="make", model=model, n=n) for name, engine in able.items()}
    if len(made) < 2:
        return []
    np.testing.assert_allclose(made[OURS], made[THEIRS], rtol=1e-4, atol=1e-4)
    for how in PLAIN, JIT:
        turns = {name: engine.turn(how, pace.turn) for name, engine in able.items()}
        samples = rounds(turns, 5 if pace.quick else ROUNDS)
        faster = 1 / 20 if (model, how) == ("Map", PLAIN) else 1.0
        targets = [Target(OURS, faster, THEIRS)]
        rows += rows_of(f"{model}, {how}", n, samples, targets, against=THEIRS)
    return rows


def parts(pace: Pace) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    for model, sizes in SIZES.items():
        for n in sizes[:1] if pace.quick else sizes:
            yield f"{model}, N = {n}", functools.partial(measure, model, n, pace)
