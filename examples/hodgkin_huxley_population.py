"""A population of Hodgkin-Huxley neurons, each with conductances and noise of its own.

    python examples/hodgkin_huxley_population.py [--mode all] [--out FILE] [--quick]

needs `pip install matplotlib tqdm` and shows

- a population made in lanes: every neuron draws its conductances from its own key;
- a whole simulation, a `jax.lax.scan` with the context as its carry, mapped over the neurons;
- the same mapped by `vmap2`, by `pmap2` over eight devices (on a CPU, eight parts of it), and by
  `vmap2` in chunks: the three draw the same random numbers and fire the same spikes;
- the firing rates of neurons without noise, checked against one neuron integrated in plain NumPy.

`--mode vmap`, `pmap` or `chunks` runs one of the three instead of all, to compare their times.

The neuron is the squid's giant axon as in Hodgkin and Huxley, "A quantitative description of
membrane current and its application to conduction and excitation in nerve", J Physiol 117:500-544
(1952), with its voltages shifted so that the cell rests at -65 mV. Units are mV, ms, mS/cm²,
µF/cm² (of which the membrane has one) and µA/cm². A step of exponential Euler lets each variable
relax for `DT` towards the value at which the others hold it.
"""

import argparse
import os
import sys
import time
from typing import Any


FLAG = "--xla_force_host_platform_device_count"
if FLAG not in os.environ.get("XLA_FLAGS", ""):  # which JAX reads when it starts
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}=8"

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from tqdm import tqdm

import statemap as sm


DT = 0.02
NEURONS = 512
CHUNK = 64
G_NA, G_K, G_L = 120.0, 36.0, 0.3
E_NA, E_K, E_L = 50.0, -77.0, -54.387
SPREAD = 0.1  # of the conductances, as a standard deviation of their logarithms
NOISE = 1.0  # of the input current, in µA/cm² ms^½
BLOCK = 10.0  # ms of simulation in one call
TRANSIENT = 100.0  # ms that do not count for the firing rates


class Neuron(eqx.Module):
    """One neuron. Its fields declare its states, whose values are kept in a `States` context."""

    spread: float = eqx.field(static=True)
    noise: float = eqx.field(static=True)
    g_na: sm.ParamState[Float[Array, ""]] = sm.field(lambda self, key: self.draw(G_NA, key))
    g_k: sm.ParamState[Float[Array, ""]] = sm.field(lambda self, key: self.draw(G_K, key))
    g_l: sm.ParamState[Float[Array, ""]] = sm.field(lambda self, key: self.draw(G_L, key))
    v: sm.ShortTermState[Float[Array, ""]] = sm.field(-65.0)
    m: sm.ShortTermState[Float[Array, ""]] = sm.field(lambda self: self.at_rest(0))
    h: sm.ShortTermState[Float[Array, ""]] = sm.field(lambda self: self.at_rest(1))
    n: sm.ShortTermState[Float[Array, ""]] = sm.field(lambda self: self.at_rest(2))
    rng: sm.RandomState = sm.field()

    def draw(self, conductance: float, key):
        return conductance * jnp.exp(self.spread * jr.normal(key))

    def at_rest(self, gate: int):
        rise, fall = gate_rates(self.v.value)[gate]
        return rise / (rise + fall)

    def step(self, states: sm.States, current: Float[Array, ""]):
        """One time step. Returns the voltage, whether it just rose above 0 mV, and the draw."""
        v, gates = states[self.v], []
        for gate, (rise, fall) in zip((self.m, self.h, self.n), gate_rates(v)):
            gates.append(relax(states[gate], rise / (rise + fall), rise + fall))
        m, h, n = gates

        g_na, g_k, g_l = states[self.g_na] * m**3 * h, states[self.g_k] * n**4, states[self.g_l]
        pull = g_na * E_NA + g_k * E_K + g_l * E_L + current
        new_v = relax(v, pull / (g_na + g_k + g_l), g_na + g_k + g_l)
        draw, states = sm.random.normal(states, self.rng)
        new_v = new_v + self.noise * DT**0.5 * draw

        states = states.update({self.v: new_v, self.m: m, self.h: h, self.n: n})
        return (new_v, (v < 0) & (new_v >= 0), draw), states

    def __call__(self, states: sm.States, currents: Float[Array, "steps"]):
        """As many time steps as there are currents."""

        def body(states, current):
            out, states = self.step(states, current)
            return states, out

        states, out = jax.lax.scan(body, states, currents)
        return out, states


def relax(x, target, rate):
    return target + (x - target) * jnp.exp(-DT * rate)


def gate_rates(v):
    """The rates, in 1/ms, at which the gates m, h and n open and close."""
    return (
        (ramp((v + 40) / 10), 4 * jnp.exp(-(v + 65) / 18)),
        (0.07 * jnp.exp(-(v + 65) / 20), 1 / (1 + jnp.exp(-(v + 35) / 10))),
        (0.1 * ramp((v + 55) / 10), 0.125 * jnp.exp(-(v + 65) / 80)),
    )


def ramp(x):
    """x / (1 - exp(-x)), which is 1 at 0."""
    small = jnp.abs(x) < 1e-4
    return jnp.where(small, 1 + x / 2, x / -jnp.expm1(-jnp.where(small, 1.0, x)))


def ways_to_map(model, axes, mode):
    """The mappings to run, by name: the same population, laid out in different ways."""
    options: dict[str, Any] = dict(in_axes=None, state_in_axes=axes, state_out_axes=axes)
    ways = {
        "vmap": ("vmap2", sm.vmap2(model, **options)),
        "pmap": (f"pmap2 over {jax.device_count()} devices", sm.pmap2(model, **options)),
        "chunks": (f"vmap2 in chunks of {CHUNK}", sm.vmap2(model, chunk_size=CHUNK, **options)),
    }
    return dict(ways.values() if mode == "all" else [ways[mode]])


def simulate(ways, states, currents):
    """Runs the population in each way, side by side, and compares block by block.

    Returns the voltages and the spikes of all neurons at all time steps, and how the ways differ:
    by how many draws, by how many spikes, and by how many mV at most.
    """
    contexts, seconds = dict.fromkeys(ways, states), dict.fromkeys(ways, 0.0)
    volts, spikes, differ = [], [], np.zeros(3)
    blocks = np.split(currents, len(currents) // round(BLOCK / DT))
    for block in tqdm(blocks, desc="Population", unit="block"):
        outs = []
        for name, mapping in ways.items():
            start = time.perf_counter()
            out, contexts[name] = jax.block_until_ready(mapping(contexts[name], block))
            seconds[name] += time.perf_counter() - start
            outs.append([np.asarray(x) for x in out])
        v, spike, draws = outs[0]
        volts.append(v)
        spikes.append(spike)
        for other_v, other_spike, other_draws in outs[1:]:
            differ[0] += np.sum(draws != other_draws)
            differ[1] += np.sum(spike != other_spike)
            differ[2] = np.maximum(differ[2], np.max(np.abs(v - other_v)))  # NaN stays
    for name, total in seconds.items():
        print(f"{name}: {total:.1f} s, compilation included", file=sys.stderr)
    return np.concatenate(volts, axis=1), np.concatenate(spikes, axis=1), differ


def firing_rates(currents, duration):
    """The firing rates of the standard neuron without noise: a lane for each current."""
    model, states, axes = sm.vmap2_new_states(
        Neuron, dict(spread=0.0, noise=0.0), key=0, axis_size=len(currents)
    )
    steps = jnp.repeat(currents[:, None], round(duration / DT), axis=1)
    (volts, _, _), _ = sm.vmap2(model, state_in_axes=axes)(states, steps)
    return [rate(np.asarray(v, float)) for v in volts]


def rate(v):
    """The firing rate in Hz, from when the voltage first and last rose above 0 mV. Between time
    steps it is taken to rise along a line.
    """
    (at,) = np.nonzero((v[:-1] < 0) & (v[1:] >= 0))
    times = DT * (at + v[at] / (v[at] - v[at + 1]))
    times = times[times > TRANSIENT]
    return 1000 * (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0


def numpy_rate(current, duration):
    """The same for one current, by hand: one neuron in a loop, in double precision."""
    v, gates, volts = -65.0, np.zeros(3), []
    for step in range(round(duration / DT)):
        x, y = (v + 40) / 10, (v + 55) / 10
        rise = [x / -np.expm1(-x), 0.07 * np.exp(-(v + 65) / 20), 0.1 * y / -np.expm1(-y)]
        fall = [4 * np.exp(-(v + 65) / 18), 1 / (1 + np.exp(-(v + 35) / 10))]
        fall = [*fall, 0.125 * np.exp(-(v + 65) / 80)]
        total = np.add(rise, fall)
        target = rise / total
        gates = target + (gates - target) * np.exp(-DT * total) if step else target
        m, h, n = gates
        g_na, g_k = G_NA * m**3 * h, G_K * n**4
        total = g_na + g_k + G_L
        target = (g_na * E_NA + g_k * E_K + G_L * E_L + current) / total
        v = target + (v - target) * np.exp(-DT * total)
        volts.append(v)
    return rate(np.array(volts))


def print_rates(currents, ours, theirs):
    print("current    statemap       NumPy")
    print("(µA/cm²)   (float32)   (float64)")
    for current, a, b in zip(currents, ours, theirs):
        print(f"{current:>8.1f} {a:>8.3f} Hz {b:>8.3f} Hz")


def input_current(quick):
    """Rest, a slow rise, a plateau, rest: one value for each time step."""
    corners, levels = [0, 20, 220, 320, 360], [0, 0, 15, 15, 15]
    if quick:
        corners = [0, 10, 60, 90, 100]
    times = np.arange(round(corners[-1] / DT)) * DT
    current = np.interp(times, corners, levels)
    return times, np.where(times < corners[3], current, 0.0).astype(np.float32)


def plot(file, times, current, conductances, volts, spikes, currents, ours, theirs):
    """Draws the population on the left: the input, some voltages, all spikes, the mean rate. On the
    right the f-I curve, and how soon each neuron fired.
    """
    figure = Figure(figsize=(11, 7), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(3, 2)).flat
    above, middle, raster, below = left.subplots(4, 1, sharex=True, height_ratios=(1, 3, 4, 2))
    curve, scatter = right.subplots(2, 1)

    above.plot(times, current, color="black", linewidth=1.5)
    above.set(title=f"{len(volts)} neurons, one input", ylabel="input\n(µA/cm²)")

    fired = spikes.any(axis=1)
    first = np.where(fired, spikes.argmax(axis=1), spikes.shape[1])
    order = np.argsort(first, kind="stable")
    shown = order[[0, len(order) // 4, len(order) // 2, 3 * len(order) // 4]]
    shades = ["#0b3c5d", "#2e86ab", "#d98b2b", "#b3372f"]
    for k, (neuron, shade) in enumerate(zip(shown, shades)):
        middle.plot(times, volts[neuron] - 130 * k, color=shade, linewidth=0.8)
        raster.plot(-4, np.flatnonzero(order == neuron), ">", color=shade, clip_on=False)
    middle.set(ylabel="voltage of four,\n130 mV apart", yticks=[])
    rows, steps = np.nonzero(spikes[order])
    raster.scatter(times[steps], rows, s=0.4, color="black", linewidths=0)
    raster.set(ylabel="spikes, by neuron", ylim=(len(order), -1))
    window = round(2 / DT)
    rates = 1000 * spikes.mean(axis=0).reshape(-1, window).sum(axis=1) / (window * DT)
    below.fill_between(times[::window], rates, color="#2e86ab", step="post", linewidth=0)
    below.set(xlabel="time (ms)", ylabel="rate (Hz)", xlim=(-4, times[-1]), ylim=(0, None))

    curve.plot(currents, theirs, color="#b3372f", linewidth=2, label="NumPy, float64")
    curve.plot(currents, ours, "o", color="black", markersize=5, label="statemap, float32")
    curve.set(title="Firing rate of the standard neuron", xlabel="input (µA/cm²)")
    curve.set(ylabel="rate (Hz)")
    curve.legend(loc="lower right", frameon=False)

    g_na, g_k = (g[fired] for g in conductances)
    dots = scatter.scatter(g_k, current[first[fired]], s=9, c=g_na, cmap="viridis")
    scatter.set(title="What it took to fire", xlabel="potassium conductance (mS/cm²)")
    scatter.set(ylabel="input at the first spike (µA/cm²)")
    right.colorbar(dots, ax=scatter, label="sodium conductance (mS/cm²)")
    for axes in (above, middle, raster, below, curve, scatter):
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (curve, scatter):
        axes.grid(alpha=0.25)
    figure.savefig(file, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=("all", "vmap", "pmap", "chunks"), default="all")
    out = "hodgkin_huxley_population.png"
    parser.add_argument("--out", default=out, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="less time, fewer currents")
    options = parser.parse_args()

    # With `pmap2_new_states`, each device makes the neurons that it will hold.
    make = sm.pmap2_new_states if options.mode == "pmap" else sm.vmap2_new_states
    parameters = dict(spread=SPREAD, noise=NOISE)
    model, states, axes = make(Neuron, parameters, key=jr.key(1952), axis_size=NEURONS)
    ways = ways_to_map(model, axes, options.mode)
    times, current = input_current(options.quick)
    volts, spikes, (draws_differ, spikes_differ, volts_differ) = simulate(ways, states, current)

    currents = np.array([0, 2, 4, 6, 7, 8, 10, 12, 15, 20, 25, 30, 40, 50], np.float32)
    if options.quick:
        currents = currents[[0, 3, 4, 6, 9, 12]]
    duration = 300.0 if options.quick else 600.0
    ours = firing_rates(currents, duration)
    by_hand = tqdm(currents.tolist(), desc="NumPy", unit="current")
    theirs = [numpy_rate(current, duration) for current in by_hand]
    print_rates(currents, ours, theirs)
    difference = np.max(np.abs(np.subtract(ours, theirs)))
    print(f"largest difference: {difference:.1g} Hz")
    conductances = np.asarray(states[model.g_na]), np.asarray(states[model.g_k])
    plot(options.out, times, current, conductances, volts, spikes, currents, ours, theirs)
    if not difference < 0.01:
        sys.exit(f"The firing rates differ by {difference:.2g} Hz; below 0.01 Hz was expected.")

    print(f"{NEURONS} neurons fired {spikes.sum()} spikes in {times[-1] + DT:.0f} ms.")
    if len(ways) > 1:
        # A spike may move by a step where rounding does; a draw may never change.
        if draws_differ or spikes_differ > 0.001 * spikes.sum() or not volts_differ < 1.0:
            sys.exit(
                f"{', '.join(ways)} disagree: in {draws_differ:.0f} draws, in {spikes_differ:.0f} "
                f"spikes, and by up to {volts_differ:.2g} mV."
            )
        print(f"{', '.join(ways)} agree:")
        print("  random draws  equal to the bit")
        print(f"  spikes        {spikes_differ:.0f} at another time step")
        print(f"  voltages      {volts_differ:.1g} mV apart at most")


if __name__ == "__main__":
    main()
