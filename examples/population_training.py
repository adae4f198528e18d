"""Population-based training: networks that find their learning rate while they learn.

    python examples/population_training.py [--rounds N] [--out FILE] [--quick]

needs `pip install optax scikit-learn matplotlib tqdm` and shows

- a member that is all of its own training: weights, optimiser, learning rate and random stream are
  states, and a training step is an ordinary method of one network, with `jax.grad` and optax in it;
- the population over eight devices (on a CPU, eight parts of it), by `behavior="pmap"`;
- selection in one line: after each round the worst quarter goes on from copies of the best,
  `states = sm.lane(states, axes, parents)`. A copy has all that its parent has, but a random stream
  of its own, so that the two draw other images and change their learning rates differently;
- the same population without selection, which it must beat, and each round again on one device,
  which must give the same.

After Jaderberg et al., "Population Based Training of Neural Networks", arXiv:1711.09846 (2017). The
digits are the 1,797 images of 8x8 pixels that scikit-learn ships.
"""

import argparse
import os
import sys
import time


FLAG = "--xla_force_host_platform_device_count"
if FLAG not in os.environ.get("XLA_FLAGS", ""):  # which JAX reads when it starts
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}=8"

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import statemap as sm


MEMBERS = 32
HIDDEN = 32
BATCH = 16
STEPS = 20  # in a round
REPLACED = MEMBERS // 4  # after each round
OPTIMISER = optax.scale_by_adam(eps=1e-4)

Layers = list[eqx.nn.Linear]


class Member(eqx.Module):
    """One network and its training. The fields declare its states."""

    layers: sm.ParamState[Layers] = sm.field(lambda key: make_layers(key))
    moments: sm.LongTermState[optax.OptState] = sm.field(lambda self: self.first_moments())
    rate: sm.LongTermState[Float[Array, ""]] = sm.field(
        lambda key: 10 ** jr.uniform(key, minval=-5.0, maxval=-0.5)
    )
    rng: sm.RandomState = sm.field()

    def first_moments(self):
        return OPTIMISER.init(self.layers.value)

    def __call__(self, states: sm.States, images, labels):
        """A round of training steps. Returns the mean loss."""

        def step(states, _):
            loss, states = self.step(states, images, labels)
            return states, loss

        states, losses = jax.lax.scan(step, states, length=STEPS)
        return losses.mean(), states

    def step(self, states: sm.States, images, labels):
        """One step, on images that this member draws."""
        batch, states = sm.random.randint(states, self.rng, (BATCH,), 0, len(labels))
        layers = states[self.layers]
        loss, grads = jax.value_and_grad(loss_fn)(layers, images[batch], labels[batch])
        updates, moments = OPTIMISER.update(grads, states[self.moments])
        layers = jax.tree.map(lambda w, u: w - states[self.rate] * u, layers, updates)
        return loss, states.update({self.layers: layers, self.moments: moments})

    def evaluate(self, states: sm.States, images, labels):
        """The loss and the accuracy."""
        logits = jax.vmap(lambda image: forward(states[self.layers], image))(images)
        loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return (loss, (logits.argmax(axis=1) == labels).mean()), states

    def explore(self, states: sm.States, is_copy: Bool[Array, ""]):
        """A copy goes on with a learning rate of its own: half or twice its parent's."""
        up, states = sm.random.bernoulli(states, self.rng)
        rate = states[self.rate] * jnp.where(up, 2.0, 0.5)
        return None, states.set(self.rate, jnp.where(is_copy, rate, states[self.rate]))


def make_layers(key) -> Layers:
    hidden_key, out_key = jr.split(key)
    return [eqx.nn.Linear(64, HIDDEN, key=hidden_key), eqx.nn.Linear(HIDDEN, 10, key=out_key)]


def forward(layers: Layers, image: Float[Array, "pixels"]):
    hidden, out = layers
    return out(jax.nn.tanh(hidden(image)))


def loss_fn(layers: Layers, images: Float[Array, "batch pixels"], labels: Int[Array, "batch"]):
    logits = jax.vmap(lambda image: forward(layers, image))(images)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def select(losses: np.ndarray) -> np.ndarray:
    """The parent of each member: itself, or for the worst one of the best."""
    order = np.argsort(losses)  # NaN is last
    parents = np.arange(len(losses))
    parents[order[-REPLACED:]] = order[:REPLACED]
    return parents


def train(population, states, data, rounds, selecting, alone=None):
    """Trains a population, with or without selection.

    With `alone`, the same population on one device, each round is run there as well.

    Returns the context, the parents and learning rates of all rounds, the losses on validation data
    after them, and how far the two ever were apart.
    """
    train_set, validation_set, _ = data
    evaluate = population.map("evaluate", in_axes=None)
    explore = population.map("explore")
    history, apart = [], 0.0
    description = "Selecting" if selecting else "Fixed"
    for _ in tqdm(range(rounds), desc=description, unit="round"):
        before = states
        trained_on, states = population(states, *train_set)
        (losses, _), _ = evaluate(states, *validation_set)
        if alone is not None:
            apart = max(apart, compare(alone, before, trained_on, states, train_set))
        losses, parents = np.asarray(losses), np.arange(MEMBERS)
        if selecting:
            parents = select(losses)
            states = sm.lane(states, population.axes, parents)
            _, states = explore(states, parents != np.arange(MEMBERS))
        history.append((parents, np.asarray(states["rate"]), losses))
    return states, [np.array(x) for x in zip(*history)], apart


def compare(alone, before, losses, after, train_set):
    """How far the losses of a round are apart on one device; random keys must be equal."""
    theirs, again = alone(jax.device_put(before, jax.devices()[0]), *train_set)
    if not np.array_equal(jr.key_data(again["rng"]), jr.key_data(after["rng"])):
        sys.exit("The random streams on one device are not those on all.")
    return np.max(np.abs(np.asarray(losses) - np.asarray(theirs)))


def lineages(parents: np.ndarray) -> np.ndarray:
    """For each member after each round, which of the first members it descends from."""
    ancestors = [np.arange(parents.shape[1])]
    for row in parents:
        ancestors.append(ancestors[-1][row])
    return np.array(ancestors)


def plot(file, first_rates, parents, rates, losses, fixed_losses):
    """Draws the learning rates as a family tree, the losses, and whose descendants are left."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(3, 2)).flat
    tree = left.subplots()
    rates = np.concatenate([first_rates[None], rates])
    rounds = np.arange(len(rates))
    for k, row in enumerate(parents):
        for member, parent in enumerate(row):
            was_copied = member != parent
            tree.plot(
                [k, k + 1],
                [rates[k, parent], rates[k + 1, member]],
                color="#d98b2b" if was_copied else "#9aa5ad",
                lw=0.9 if was_copied else 0.6,
            )
    member, path = np.argmin(losses[-1]), []
    # From the best of the last evaluation back to the first round.
    for k in range(len(parents) - 1, -1, -1):
        path.append((k, rates[k, member]))
        member = parents[k - 1][member] if k else member
    tree.plot(*np.array(path).T, color="#b3372f", lw=2.2)
    tree.set(yscale="log", xlabel="round", ylabel="learning rate", xlim=(0, rounds[-1]))
    tree.set(title="Learning rates. Orange: a copy goes on. Red: the line of the best")
    tree.xaxis.get_major_locator().set_params(integer=True)

    above, below = right.subplots(2, 1)
    for curve, color, label in (
        (fixed_losses, "#5b6770", "fixed"),
        (losses, "#b3372f", "selection"),
    ):
        above.fill_between(
            rounds[1:], *np.quantile(curve, [0.25, 0.75], axis=1), color=color, alpha=0.2, lw=0
        )
        above.plot(rounds[1:], np.median(curve, axis=1), color=color, label=f"{label}: median")
        above.plot(rounds[1:], curve.min(axis=1), color=color, ls=":", label=f"{label}: best")
    above.set(title="Loss on validation digits", yscale="log", ylabel="cross-entropy")
    above.set(xlim=(0, rounds[-1]))
    above.legend(frameon=False, fontsize=8, loc="upper center", ncols=2)
    above.set_ylim(top=8)  # room for the legend
    ancestors = lineages(parents)
    order = np.argsort(first_rates)
    shares = [(ancestors == i).sum(axis=1) for i in order]
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 1, len(order)))
    below.stackplot(rounds, shares, colors=shades, lw=0)
    below.set(title="Whose descendants they are", xlabel="round", ylabel="members")
    below.set(xlim=(0, rounds[-1]), ylim=(0, len(order)))
    scale = LogNorm(first_rates.min(), first_rates.max())
    shown = ScalarMappable(scale, cmap="viridis")
    right.colorbar(shown, ax=below, label="ancestor's first learning rate")
    for axes in (tree, above):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    figure.savefig(file, dpi=150)


def load_data():
    """Images and labels to train on, to select by, and to judge by."""
    digits = load_digits()
    images, labels = (digits.images / 16).reshape(-1, 64).astype(np.float32), digits.target
    seen, test, seen_labels, test_labels = train_test_split(
        images, labels, test_size=0.2, random_state=0
    )
    train, validation, train_labels, validation_labels = train_test_split(
        seen, seen_labels, test_size=0.25, random_state=0
    )
    sets = (train, train_labels), (validation, validation_labels), (test, test_labels)
    return jax.tree.map(jnp.asarray, sets)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--out", default="population_training.png", help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="12 rounds")
    options = parser.parse_args()
    rounds = 12 if options.quick else options.rounds

    data = load_data()
    make = {b: sm.Map(Member, MEMBERS, in_axes=None, behavior=b) for b in ("pmap", "vmap")}
    population, first = make["pmap"].init_all_states(key=jr.key(0))
    alone, _ = make["vmap"].init_all_states(key=jr.key(0))
    start = time.perf_counter()
    states, (parents, rates, losses), apart = train(population, first, data, rounds, True, alone)
    fixed, (_, _, fixed_losses), _ = train(population, first, data, rounds, False)
    print(f"{time.perf_counter() - start:.1f} s, compilation included", file=sys.stderr)

    evaluate = population.map("evaluate", in_axes=None)
    (_, ours), _ = evaluate(states, *data[2])
    (_, theirs), _ = evaluate(fixed, *data[2])
    print("accuracy on test digits   median     best")
    for name, accuracies in (("selection", ours), ("fixed", theirs)):
        print(f"{name:<22} {np.median(accuracies):>9.2%} {accuracies.max():>8.2%}")
    n_ancestors = len(np.unique(lineages(parents)[-1]))
    print(f"All {MEMBERS} descend from {n_ancestors} of the first.")
    print(f"Rounds on 1 and on {jax.device_count()} devices: losses {apart:.1g} apart at most.")
    plot(options.out, np.asarray(first["rate"]), parents, rates, losses, fixed_losses)
    if not apart < 1e-3:
        sys.exit("Less than 0.001 was expected.")
    if not np.median(ours) > np.median(theirs):
        sys.exit("The median with selection should be above the one without.")


if __name__ == "__main__":
    main()
