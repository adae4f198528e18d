"""A spiking network runs many trials: the scan over time inside the map over trials, and outside.

    python examples/spiking_trials.py [--trials N] [--out FILE] [--quick]

needs `pip install matplotlib tqdm` and shows

- a model whose fields are named once, by `sm.field`, and trials made of it by `sm.broadcast`;
- states of three kinds: synapses that all trials share, voltages that each trial has for itself,
  and a stream of random numbers;
- `scan` over time inside `vmap2` over trials, and `vmap2` inside `scan`;
- that the two draw different numbers from one stream, and the same from a stream for each trial:
  then every spike is the same, and so is every bit of the streams that are left.

The network is a small one of the kind in Brunel, "Dynamics of sparsely connected networks of
excitatory and inhibitory spiking neurons", J Comput Neurosci 8:183-208 (2000): leaky
integrate-and-fire neurons, four of five of them excitatory, with random synapses. Units are mV
above rest and ms. A stimulus to the excitatory neurons comes on in the middle of each trial.
"""

import argparse
import sys
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float
from matplotlib.figure import Figure
from tqdm import tqdm

import statemap as sm


EXCITATORY, INHIBITORY = 320, 80
DT = 0.5
DURATION = 600.0
STIMULUS = (200.0, 400.0)  # from when to when
BACKGROUND, EVOKED = 14.0, 5.0  # mV that the input tends to, without and with the stimulus
LEAK = 20.0  # ms
THRESHOLD, RESET = 20.0, 10.0
SYNAPSE = 0.5  # mV that an excitatory spike adds to a neuron that it reaches
INHIBITION = 5.0  # how many times that an inhibitory one takes away
CONNECTED = 0.1  # the share of all pairs of neurons
NOISE = 1.0  # mV ms^-½
BIN = 10.0  # ms, of the firing rates


class Network(eqx.Module):
    """The network of one trial. The values of its states are kept in a `States` context."""

    n: int
    weight: sm.ParamState[Float[Array, "n n"]] = sm.field(lambda self, key: synapses(self.n, key))
    v: sm.ShortTermState[Float[Array, "n"]] = sm.field(lambda self: jnp.zeros(self.n))
    fired: sm.ShortTermState[Bool[Array, "n"]] = sm.field(lambda self: jnp.zeros(self.n, bool))
    rng: sm.RandomState = sm.field()

    def step(self, states: sm.States, drive: Float[Array, "n"]):
        """One time step. Returns which neurons fire."""
        noise, states = sm.random.normal(states, self.rng, (self.n,))
        # A sum of whole numbers, which is the same in whatever order it is taken.
        received = SYNAPSE * (states[self.weight] @ states[self.fired].astype(float))
        leak = DT / LEAK
        v = states[self.v] + leak * (drive - states[self.v]) + received + NOISE * DT**0.5 * noise
        fires = v > THRESHOLD
        return fires, states.update({self.v: jnp.where(fires, RESET, v), self.fired: fires})


def synapses(n: int, key: Array) -> Array:
    """Who reaches whom, to a row from a column, in units of `SYNAPSE`."""
    signs = jnp.where(jnp.arange(n) < EXCITATORY, 1.0, -INHIBITION)
    return jr.bernoulli(key, CONNECTED, (n, n)) * signs


Step = Callable[[sm.States, Array], tuple[Array, sm.States]]


def both_forms(model: Network, axes: sm.MemberAxes) -> dict[str, Step]:
    """All trials, with the scan inside of the map and outside."""
    trials = sm.vmap2(sm.scan(model.step), in_axes=None, out_axes=1, state_in_axes=axes)
    step = sm.vmap2(model.step, in_axes=None, state_in_axes=axes)
    return {"scan inside": trials, "scan outside": jax.jit(sm.scan(step))}


def simulate(trials: int, drives: Array):
    """The spikes, as (step, trial, neuron), and the context that is left, by the streams that the
    trials draw from and by the form.
    """
    model, one = sm.make_with_states(Network)(EXCITATORY + INHIBITORY, key=jr.key(2000))
    shared = sm.broadcast(one, {0: sm.ShortTermState}, axis_size=trials)
    own = sm.broadcast(one, {0: (sm.ShortTermState, sm.RandomState)}, axis_size=trials)
    spikes, after = {}, {}
    with tqdm(total=4, desc="Simulation", unit="run") as progress:
        for streams, (states, axes) in {"one stream": shared, "own streams": own}.items():
            for form, run in both_forms(model, axes).items():
                spikes[streams, form], after[streams, form] = run(states, drives)
                jax.block_until_ready(after)
                progress.update()
    return {key: np.asarray(s) for key, s in spikes.items()}, after


def input_drives() -> tuple[np.ndarray, Array]:
    """What each neuron is driven by at each time step."""
    times = DT * np.arange(round(DURATION / DT))
    drives = np.full((len(times), EXCITATORY + INHIBITORY), BACKGROUND, np.float32)
    is_on = (STIMULUS[0] <= times) & (times < STIMULUS[1])
    drives[is_on, :EXCITATORY] += EVOKED
    return times, jnp.asarray(drives)


def rates(spikes: np.ndarray) -> np.ndarray:
    """The firing rate of the excitatory neurons in each trial, in Hz, as (bin, trial)."""
    window = round(BIN / DT)
    counts = spikes[:, :, :EXCITATORY].mean(axis=2)
    total: np.ndarray = counts.reshape(-1, window, counts.shape[1]).sum(axis=1)
    return total * 1000 / BIN


def plot(file, times, spikes):
    """Draws on the left two trials, one neuron in all trials, and the rate over all trials. On the
    right, the end of a trial in both forms, from one stream and from streams of their own.
    """
    figure = Figure(figsize=(11, 7), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(3, 2)).flat
    first, second, neuron, psth = left.subplots(4, 1, sharex=True, height_ratios=(3, 3, 2, 2))
    shown = spikes["own streams", "scan inside"]
    excitatory, inhibitory, other = "#0b3c5d", "#b3372f", "#d98b2b"

    for axes, trial in ((first, 0), (second, 1)):
        steps, rows = np.nonzero(shown[:, trial])
        colors = np.where(rows < EXCITATORY, excitatory, inhibitory)
        axes.scatter(times[steps], rows, s=0.7, c=colors, linewidths=0)
        axes.set(ylabel=f"trial {trial + 1}\nneuron", ylim=(EXCITATORY + INHIBITORY, -1))
    first.set_title("Two trials of one network, and one neuron in all trials", fontsize=11)
    chosen = np.argsort(shown[:, :, :EXCITATORY].sum(axis=(0, 1)))[-EXCITATORY // 4]
    steps, rows = np.nonzero(shown[:, :, chosen])
    neuron.scatter(times[steps], rows + 1, s=8, c=excitatory, marker="|", linewidths=0.8)
    neuron.set(ylabel=f"neuron {chosen}\ntrial", ylim=(shown.shape[1] + 0.9, 0.1))
    by_trial = rates(shown)
    centres = BIN * (np.arange(len(by_trial)) + 0.5)
    mean, spread = by_trial.mean(axis=1), by_trial.std(axis=1)
    band = mean - spread, mean + spread
    psth.fill_between(centres, *band, color=excitatory, alpha=0.25, linewidth=0)
    psth.plot(centres, mean, color=excitatory, linewidth=1.5)
    psth.set(xlabel="time (ms)", ylabel="mean and s.d.\nof the rate (Hz)", xlim=(0, DURATION))
    psth.set_ylim(0)
    for axes in (first, second, neuron, psth):
        axes.axvspan(*STIMULUS, color="#fdf3d0", linewidth=0, zorder=0)

    part = slice(round(STIMULUS[0] / DT), round((STIMULUS[0] + 60) / DT))
    for axes, streams in zip(right.subplots(2, 1, sharex=True), ("one stream", "own streams")):
        inside, outside = (
            spikes[streams, form][part, 0, :80] for form in ("scan inside", "scan outside")
        )
        for where, color, label in (
            (inside & ~outside, excitatory, "scan inside only"),
            (outside & ~inside, other, "scan outside only"),
            (inside & outside, "black", "both"),
        ):
            steps, rows = np.nonzero(where)
            axes.scatter(times[part][steps], rows, s=9, c=color, linewidths=0, label=label)
        same = (inside & outside).sum() / (inside | outside).sum()
        axes.set_title(f"{streams.capitalize()}: {same:.0%} of the spikes in both", fontsize=11)
        axes.set(ylabel="trial 1, neuron", ylim=(80, -1))
    axes.set_xlabel("time (ms)")
    labels = axes.get_legend_handles_labels()
    right.legend(*labels, loc="outside lower center", ncols=3, fontsize=9, columnspacing=1)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--out", default="spiking_trials.png", help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="8 trials")
    options = parser.parse_args()

    times, drives = input_drives()
    spikes, after = simulate(8 if options.quick else options.trials, drives)
    print("streams       form           spikes   rate (Hz)  with the stimulus")
    is_on = (STIMULUS[0] <= times) & (times < STIMULUS[1])
    for (streams, form), fired in spikes.items():
        quiet, driven = (1000 / DT * fired[on].mean() for on in (~is_on, is_on))
        print(f"{streams:<12}  {form:<12} {fired.sum():>8} {quiet:>11.1f} {driven:>18.1f}")
    plot(options.out, times, spikes)

    reference = spikes["own streams", "scan inside"]
    differ = {key: np.sum(fired != reference) for key, fired in spikes.items()}
    if after["own streams", "scan inside"] != after["own streams", "scan outside"]:
        sys.exit("With streams of their own, the two forms left different states.")
    if differ["own streams", "scan outside"]:
        sys.exit("With streams of their own, the two forms fired different spikes.")
    if differ["one stream", "scan inside"]:
        sys.exit("One call dealt out other streams than `broadcast`.")
    if not differ["one stream", "scan outside"]:
        sys.exit("The forms agree where each call deals out streams anew: that can't be.")
    print("With streams of their own, the trials fire the same spikes in both forms, to the bit.")
    print("From one stream, they do so with the scan inside, where it is dealt out once.")


if __name__ == "__main__":
    main()
