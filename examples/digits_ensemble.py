"""Eight recurrent classifiers read handwritten digits, and vote.

    python examples/digits_ensemble.py [--epochs N] [--out FILE] [--quick]

needs `pip install optax scikit-learn matplotlib tqdm` and shows

- an ensemble as two nested `vmap2`s: one over the members, one inside it over the images;
- states of four kinds, each shared where it should be: parameters, a running statistic that all
  images of a batch update together, a hidden state for each image, and a stream of random numbers
  that differs between members and between images;
- a context of states going through `jax.grad`, `jax.lax.scan`, `jax.jit` and optax.

The digits are the 1,797 images of 8x8 pixels that scikit-learn ships. A member reads an image as
8 time steps of 8 pixels, from the top row to the bottom row.
"""

import argparse
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import statemap as sm


MEMBERS = 8
HIDDEN = 48
BATCH = 32
DROPOUT = 0.3
LEARNING_RATE = 3e-3


class Classifier(eqx.Module):
    """One member. The fields declare its states, whose values are kept in a `States` context."""

    # The value of a state may be a whole Equinox layer. Each key is derived from the model's.
    cell: sm.ParamState[eqx.nn.GRUCell] = sm.field(lambda key: eqx.nn.GRUCell(8, HIDDEN, key=key))
    readout: sm.ParamState[Float[Array, "digits hidden"]] = sm.field(
        lambda key: jr.normal(key, (10, HIDDEN)) / HIDDEN**0.5
    )
    mean: sm.LongTermState[Float[Array, "hidden"]] = sm.field(lambda: jnp.zeros(HIDDEN))
    var: sm.LongTermState[Float[Array, "hidden"]] = sm.field(lambda: jnp.ones(HIDDEN))
    hidden: sm.HiddenState[Float[Array, "hidden"]] = sm.field(lambda: jnp.zeros(HIDDEN))
    rng: sm.RandomState = sm.field()

    def __call__(self, states: sm.States, image: Float[Array, "8 8"], *, train: bool):
        """The logits of the ten digits, by one member for one image: `vmap2` does the rest."""

        def read_row(states, row):
            return states.set(self.hidden, states[self.cell](row, states[self.hidden])), None

        states, _ = jax.lax.scan(read_row, states, image)
        features, states = self.normalise(states, states[self.hidden], train)
        if train:  # every image draws its own mask, and the member's stream moves on once
            keep, states = sm.random.bernoulli(states, self.rng, 1 - DROPOUT, features.shape)
            features = jnp.where(keep, features / (1 - DROPOUT), 0.0)
        return states[self.readout] @ features, states

    def normalise(self, states: sm.States, x: Float[Array, "hidden"], train: bool):
        """Normalises by the batch in training, and by the running statistic afterwards."""
        if train:
            # The mean over the "batch" is the same for all of its images. So is what they write,
            # and the running statistic remains one that they share.
            mean = jax.lax.pmean(x, "batch")
            var = jax.lax.pmean((x - mean) ** 2, "batch")
            states = states.set(self.mean, 0.8 * states[self.mean] + 0.2 * mean)
            states = states.set(self.var, 0.8 * states[self.var] + 0.2 * var)
        else:
            mean, var = states[self.mean], states[self.var]
        return (x - mean) / jnp.sqrt(var + 1e-3), states


def make_ensemble(key):
    """The ensemble, and its context: every state has a leading axis of members."""
    model, states, axes = sm.vmap2_new_states(Classifier, key=key, axis_size=MEMBERS)
    # Inside, over images: they share all states, but draw from random streams of their own.
    # What an image leaves in the hidden state matters within the call alone.
    member = sm.vmap2(model, axis_name="batch", state_out_axes={sm.Restore: sm.HiddenState})
    # Outside, over members: each has its own part of every state and sees all images.
    return sm.vmap2(member, in_axes=None, state_in_axes=axes), states


def make_epoch(ensemble, states, train_set, epochs):
    """A function that trains all members at once for an epoch, and the optimiser's first state."""
    images, labels = train_set
    n_steps = len(images) // BATCH
    optimiser = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, epochs * n_steps))

    def loss_fn(params, rest, batch):
        logits, states = ensemble(rest.merge(params), images[batch], train=True)
        targets = jax.nn.one_hot(labels[batch], 10)
        losses = optax.losses.softmax_cross_entropy(logits, targets).mean(axis=1)
        # A member's loss depends on no other's parameters: the sum gives each its own gradient.
        return losses.sum(), (losses, states)

    def step(carry, batch):
        states, opt_state = carry
        params, rest = states.partition(sm.ParamState, ...)
        grads, (losses, states) = jax.grad(loss_fn, has_aux=True)(params, rest, batch)
        updates, opt_state = optimiser.update(grads, opt_state)
        states = states.merge(optax.apply_updates(params, updates))
        return (states, opt_state), losses

    @jax.jit
    def epoch(states, opt_state, key):
        shuffled = jr.permutation(key, len(images))[: n_steps * BATCH]
        batches = shuffled.reshape(n_steps, BATCH)
        (states, opt_state), losses = jax.lax.scan(step, (states, opt_state), batches)
        return states, opt_state, losses.mean(axis=0)

    return epoch, optimiser.init(states.select(sm.ParamState))


def predict(ensemble, states, images):
    """The probabilities that each member gives to each digit."""
    logits, _ = ensemble(states, images, train=False)  # which leaves the context as it was
    return jax.nn.softmax(logits)


def train(program, ensemble, states, train_set, test_set, epochs, key):
    """Trains all members. Returns the trained states and the learning curves."""
    epoch, opt_state = program.make_epoch(ensemble, states, train_set, epochs)
    curves = []
    progress = tqdm(jr.split(key, epochs), desc="Training", unit="epoch")
    for epoch_key in progress:
        states, opt_state, losses = epoch(states, opt_state, epoch_key)
        members, vote = accuracies(program.predict(ensemble, states, test_set[0]), test_set[1])
        curves.append((losses, members, vote))
        progress.set_postfix(loss=f"{losses.mean():.3f}", vote=f"{vote:.1%}")
    return states, [jnp.stack(curve) for curve in zip(*curves)]


def accuracies(probabilities, labels):
    """The accuracy of each member, and that of the vote: the digit of highest mean probability."""
    members = probabilities.argmax(axis=-1) == labels
    vote = probabilities.mean(axis=0).argmax(axis=-1) == labels
    return members.mean(axis=1), vote.mean()


def print_table(trained, held_out):
    print("member   trained on   held out")
    for i, (seen, unseen) in enumerate(zip(trained[0], held_out[0]), start=1):
        print(f"{i:<6} {seen:>12.2%} {unseen:>10.2%}")
    print(f"{'vote':<6} {trained[1]:>12.2%} {held_out[1]:>10.2%}")


def plot(file, curves, vote, images, labels):
    """Draws the learning curves, and below them the held-out digits that the vote read worst."""
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(2, 1)).flat
    left, right = above.subplots(1, 2)
    epochs = range(1, len(curves[0]) + 1)
    for axes, curve in ((left, curves[0]), (right, 100 * curves[1])):
        lines = axes.plot(epochs, curve, color="steelblue", alpha=0.5, linewidth=1)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    lines += right.plot(epochs, 100 * curves[2], color="crimson", linewidth=2)
    left.set(title="Loss in training", ylabel="cross-entropy", yscale="log")
    right.set(title="Accuracy on held-out digits", ylabel="read correctly (%)", ylim=(80, 100.5))
    right.legend([lines[0], lines[-1]], ["a member", "the vote"], loc="lower right", frameon=False)

    read = vote.argmax(axis=1)
    chance = vote[jnp.arange(len(labels)), labels]
    worst = jnp.lexsort((chance, read == labels))[:8]  # the misread ones first
    n_misread = (read != labels).sum()
    below.suptitle(f"The vote misread {n_misread} of {len(labels)} held-out digits (red)")
    for axes, i in zip(below.subplots(1, 8), worst):
        axes.imshow(images[i], cmap="gray_r")
        color = "black" if read[i] == labels[i] else "crimson"
        axes.set_title(f"vote: {read[i]}\ntruth: {labels[i]}", color=color, fontsize=10)
        axes.set(xticks=[], yticks=[])
    figure.savefig(file, dpi=150)


def load_data():
    digits = load_digits()
    images, labels = digits.images / 16, digits.target
    parts = train_test_split(images, labels, test_size=0.2, random_state=0)
    images, test_images, labels, test_labels = map(jnp.asarray, parts)
    return (images, labels), (test_images, test_labels)


def main(program, out):
    """Runs a program: what defines `make_ensemble`, `make_epoch` and `predict`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--out", default=out, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="5 epochs, and any accuracy will do")
    options = parser.parse_args()

    train_set, test_set = load_data()
    init_key, train_key = jr.split(jr.key(0))
    ensemble, states = program.make_ensemble(init_key)
    epochs = 5 if options.quick else options.epochs
    start = time.perf_counter()
    states, curves = train(program, ensemble, states, train_set, test_set, epochs, train_key)
    seconds = time.perf_counter() - start
    print(f"Trained for {seconds:.1f} s, compilation included.", file=sys.stderr)

    trained = accuracies(program.predict(ensemble, states, train_set[0]), train_set[1])
    probabilities = program.predict(ensemble, states, test_set[0])
    held_out = accuracies(probabilities, test_set[1])
    print_table(trained, held_out)
    plot(options.out, curves, probabilities.mean(axis=0), *test_set)
    if held_out[1] < 0.95 and not options.quick:
        sys.exit(f"The vote read {held_out[1]:.2%} of the held-out digits; 95 % were expected.")


if __name__ == "__main__":
    main(sys.modules[__name__], "digits_ensemble.png")
