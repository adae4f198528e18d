"""The program of `digits_ensemble.py` in plain JAX and Equinox, to compare the two.

    python examples/digits_ensemble_plain.py [--epochs N] [--out FILE] [--quick]

It is what one would write without statemap: parameters in a module, and all else that changes in
tuples that are passed in and out. The digits, the loop and the picture are those of
`digits_ensemble.py`. So are the results: in the end both programs are started with the same
numbers, and must stay together for an epoch.
"""

import functools
import sys
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from digits_ensemble import BATCH, DROPOUT, HIDDEN, LEARNING_RATE, load_data, main, MEMBERS
from jaxtyping import Array, Float, Key


class Stats(NamedTuple):
    mean: Float[Array, "*members hidden"]
    var: Float[Array, "*members hidden"]


class Classifier(eqx.Module):
    """One member, but for its running statistic and its random numbers."""

    cell: eqx.nn.GRUCell
    readout: Float[Array, "digits hidden"]

    def __init__(self, *, key):
        cell_key, readout_key = jr.split(key)
        self.cell = eqx.nn.GRUCell(8, HIDDEN, key=cell_key)
        self.readout = jr.normal(readout_key, (10, HIDDEN)) / HIDDEN**0.5

    def __call__(self, stats: Stats, image: Float[Array, "8 8"], key, *, train: bool):
        """The logits of the ten digits, by one member for one image: `vmap` does the rest."""

        def read_row(hidden, row):
            return self.cell(row, hidden), None

        hidden, _ = jax.lax.scan(read_row, jnp.zeros(HIDDEN), image)
        features, stats = normalise(stats, hidden, train)
        if train:  # every image has a key of its own
            keep = jr.bernoulli(key, 1 - DROPOUT, features.shape)
            features = jnp.where(keep, features / (1 - DROPOUT), 0.0)
        return self.readout @ features, stats


def normalise(stats: Stats, x: Float[Array, "hidden"], train: bool):
    """Normalises by the batch in training, and by the running statistic afterwards."""
    if train:
        # The mean over the "batch" is the same for all of its images, as `out_axes` says.
        mean = jax.lax.pmean(x, "batch")
        var = jax.lax.pmean((x - mean) ** 2, "batch")
        stats = Stats(0.8 * stats.mean + 0.2 * mean, 0.8 * stats.var + 0.2 * var)
    else:
        mean, var = stats
    return (x - mean) / jnp.sqrt(var + 1e-3), stats


class States(NamedTuple):
    """What changes, with a leading axis of members."""

    model: Classifier
    stats: Stats
    key: Key[Array, "*members"]


def make_ensemble(key):
    """The ensemble, and its states."""
    model_key, dropout_key = jr.split(key)
    model = eqx.filter_vmap(lambda key: Classifier(key=key))(jr.split(model_key, MEMBERS))
    stats = Stats(jnp.zeros((MEMBERS, HIDDEN)), jnp.ones((MEMBERS, HIDDEN)))
    states = States(model, stats, jr.split(dropout_key, MEMBERS))

    @functools.partial(jax.jit, static_argnames="train")
    def ensemble(states, images, *, train):
        @functools.partial(jax.vmap, in_axes=(0, None))
        def member(states, images):
            model, stats, key = states
            keys = jr.split(key, len(images) + 1)
            # Any keys would do; the second half of each is what statemap draws from.
            draws = jax.vmap(jr.split)(keys[1:])[:, 1]
            image = functools.partial(model, train=train)
            # Images share the model and the statistic, and have keys of their own.
            batch = jax.vmap(image, in_axes=(None, 0, 0), out_axes=(0, None), axis_name="batch")
            logits, stats = batch(stats, images, draws)
            return logits, States(model, stats, keys[0] if train else key)

        return member(states, images)

    return ensemble, states


def make_epoch(ensemble, states, train_set, epochs):
    """A function that trains all members at once for an epoch, and the optimiser's first state."""
    images, labels = train_set
    n_steps = len(images) // BATCH
    optimiser = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, epochs * n_steps))

    def loss_fn(model, stats, key, batch):
        logits, states = ensemble(States(model, stats, key), images[batch], train=True)
        targets = jax.nn.one_hot(labels[batch], 10)
        losses = optax.losses.softmax_cross_entropy(logits, targets).mean(axis=1)
        # A member's loss depends on no other's parameters: the sum gives each its own gradient.
        return losses.sum(), (losses, states)

    def step(carry, batch):
        states, opt_state = carry
        grads, (losses, states) = jax.grad(loss_fn, has_aux=True)(*states, batch)
        updates, opt_state = optimiser.update(grads, opt_state)
        states = states._replace(model=optax.apply_updates(states.model, updates))
        return (states, opt_state), losses

    @jax.jit
    def epoch(states, opt_state, key):
        shuffled = jr.permutation(key, len(images))[: n_steps * BATCH]
        batches = shuffled.reshape(n_steps, BATCH)
        (states, opt_state), losses = jax.lax.scan(step, (states, opt_state), batches)
        return states, opt_state, losses.mean(axis=0)

    return epoch, optimiser.init(states.model)


def predict(ensemble, states, images):
    """The probabilities that each member gives to each digit."""
    logits, _ = ensemble(states, images, train=False)
    return jax.nn.softmax(logits)


def check_equal():
    """Both programs, from the same numbers: the losses of a first epoch."""
    import digits_ensemble as with_statemap

    train_set, (images, _) = load_data()
    theirs, states = with_statemap.make_ensemble(jr.key(0))
    ours, plain = make_ensemble(jr.key(0))
    model = eqx.tree_at(
        lambda m: (m.cell, m.readout), plain.model, (states["cell"], states["readout"])
    )
    plain = States(model, Stats(states["mean"], states["var"]), states["rng"])
    results = []
    for program, ensemble, state in (
        (with_statemap, theirs, states),
        (sys.modules[__name__], ours, plain),
    ):
        epoch, opt_state = program.make_epoch(ensemble, state, train_set, 1)
        state, _, losses = epoch(state, opt_state, jr.key(1))
        results.append((losses, program.predict(ensemble, state, images)))
    differences = jax.tree.map(lambda x, y: jnp.abs(x - y).max(), *results)
    print(f"Plain JAX and statemap: losses {differences[0]:.1g} apart after an epoch, at most.")
    if not max(differences) < 0.01:
        sys.exit("Plain JAX and statemap disagree.")


if __name__ == "__main__":
    main(sys.modules[__name__], "digits_ensemble_plain.png")
    check_equal()
