"""1,000 carts learn to balance their poles, with one policy that all of them share.

    python examples/environments.py [--updates N] [--out FILE] [--quick]

needs `pip install optax matplotlib tqdm` and shows

- 1,000 environments as lanes, each with its own cart and random stream, which begin a new episode
  by themselves when one is over;
- one policy that all of them share, and a gradient with respect to it alone, by `partition`;
- statistics that every lane adds to, and that come out as one number each, by `sm.Reduce`.

The environment is the cart-pole of Barto, Sutton and Anderson, "Neuronlike adaptive elements that
can solve difficult learning control problems", IEEE Trans Syst Man Cybern 13:834-846 (1983): a
push to the left or to the right in every fiftieth of a second, until the pole leans by more than
12 degrees, the cart is 2.4 m off the middle, or ten seconds have passed. The policy is learned by
advantage actor-critic, from 32 time steps of all environments at a time.
"""

import argparse
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int
from matplotlib.figure import Figure
from tqdm import tqdm

import statemap as sm


ENVIRONMENTS = 1000
HORIZON = 32  # time steps from one update of the policy to the next
LONGEST = 500  # time steps of an episode
DISCOUNT = 0.98
LEARNING_RATE = 1e-2
DT, GRAVITY, FORCE = 0.02, 9.8, 10.0
CART, POLE, HALF_LENGTH = 1.0, 0.1, 0.5
WIDTH, LEAN = 2.4, 12 * jnp.pi / 180


class Agent(eqx.Module):
    """The policy, and one environment. The values of their states are in a `States` context."""

    hidden: sm.ParamState[eqx.nn.Linear] = sm.field(lambda key: eqx.nn.Linear(4, 64, key=key))
    actor: sm.ParamState[eqx.nn.Linear] = sm.field(lambda key: eqx.nn.Linear(64, 1, key=key))
    critic: sm.ParamState[eqx.nn.Linear] = sm.field(lambda key: eqx.nn.Linear(64, 1, key=key))
    cart: sm.ShortTermState[Float[Array, "4"]] = sm.field(lambda: jnp.zeros(4))
    age: sm.ShortTermState[Int[Array, ""]] = sm.field(0)
    finished: sm.LongTermState[Int[Array, ""]] = sm.field(0)  # episodes
    balanced: sm.LongTermState[Int[Array, ""]] = sm.field(0)  # time steps of these
    rng: sm.RandomState = sm.field()

    def look(self, states: sm.States) -> tuple[Array, Array]:
        """How much the policy is for a push to the right, and what it expects of the future."""
        features = jnp.tanh(states[self.hidden](states[self.cart]))
        return states[self.actor](features)[0], states[self.critic](features)[0]

    def step(self, states: sm.States):
        """One time step, and the beginning of another episode if this one is over."""
        logit, value = self.look(states)
        right, states = sm.random.bernoulli(states, self.rng, jax.nn.sigmoid(logit))
        log_prob = -jax.nn.softplus(jnp.where(right, -logit, logit))

        cart, age = push(states[self.cart], right), states[self.age] + 1
        fell = (jnp.abs(cart[0]) > WIDTH) | (jnp.abs(cart[2]) > LEAN)
        over = fell | (age == LONGEST)
        fresh, states = sm.random.uniform(states, self.rng, (4,), minval=-0.05, maxval=0.05)
        states = states.update(
            {
                self.cart: jnp.where(over, fresh, cart),
                self.age: jnp.where(over, 0, age),
                self.finished: states[self.finished] + over,
                self.balanced: states[self.balanced] + jnp.where(over, age, 0),
            }
        )
        return (log_prob, value, over, cart), states

    def loss(self, states: sm.States):
        """What one environment wants of the policy, after `HORIZON` time steps."""
        (log_probs, values, overs, _), states = sm.scan(self.step, length=HORIZON)(states)
        _, last = self.look(states)

        def backwards(future, over):
            future = 1.0 + DISCOUNT * jnp.where(over, 0.0, future)  # a reward for each step
            return future, future

        _, returns = jax.lax.scan(backwards, jax.lax.stop_gradient(last), overs, reverse=True)
        surprise = returns - values
        gain = jax.lax.stop_gradient(surprise) * log_probs
        return jnp.mean(0.5 * surprise**2 - gain), states


def push(cart: Float[Array, "4"], right: Bool[Array, ""]) -> Float[Array, "4"]:
    """The cart and its pole after a time step: place, speed, lean and its rate of change."""
    x, speed, lean, turn = cart
    force = jnp.where(right, FORCE, -FORCE)
    sin, cos = jnp.sin(lean), jnp.cos(lean)
    pull = (force + POLE * HALF_LENGTH * turn**2 * sin) / (CART + POLE)
    inertia = HALF_LENGTH * (4 / 3 - POLE * cos**2 / (CART + POLE))
    lean_rate = (GRAVITY * sin - cos * pull) / inertia
    acceleration = pull - POLE * HALF_LENGTH * lean_rate * cos / (CART + POLE)
    speed, turn = speed + DT * acceleration, turn + DT * lean_rate
    return jnp.stack([x + DT * speed, speed, lean + DT * turn, turn])


def learn(model: Agent, states: sm.States, axes: sm.MemberAxes, updates: int):
    """Returns the states after so many updates, and how long an episode lasted, by update."""
    # All lanes see the same policy and the same counts. What each adds to these is summed up.
    losses = sm.vmap2(
        model.loss, state_in_axes=axes, state_out_axes={sm.Reduce("changes"): sm.LongTermState}
    )
    optimiser = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, updates))
    opt_state = optimiser.init(states.select(sm.ParamState))

    def mean_loss(params, rest):
        each, states = losses(rest.merge(params))
        return each.mean(), states

    @jax.jit
    def update(states, opt_state):
        params, rest = states.partition(sm.ParamState, ...)
        grads, new = jax.grad(mean_loss, has_aux=True)(params, rest)
        steps, opt_state = optimiser.update(grads, opt_state)
        counts = [new[count] - states[count] for count in (model.finished, model.balanced)]
        return new.merge(eqx.apply_updates(params, steps)), opt_state, counts

    curve = []
    progress = tqdm(range(updates), desc="Learning", unit="update")
    for _ in progress:
        states, opt_state, (finished, balanced) = update(states, opt_state)
        curve.append(float(balanced / finished) if finished else np.nan)
        progress.set_postfix(steps=f"{curve[-1]:.0f}", refresh=False)
    return states, np.array(curve)


def watch(model: Agent, states: sm.States, axes: sm.MemberAxes) -> tuple[np.ndarray, np.ndarray]:
    """The carts of some environments over a whole episode, and when episodes were over."""
    run = sm.vmap2(
        sm.scan(model.step, length=LONGEST),
        state_in_axes=axes,
        state_out_axes={sm.Restore: sm.LongTermState},  # what is watched counts for nothing
    )
    (_, _, overs, carts), _ = run(states)
    return np.asarray(overs), np.asarray(carts)


def plot(file, curve, before, after, pushes):
    """Draws the learning curve on the left; on the right how the poles leaned before and after, and
    where the policy pushes.
    """
    figure = Figure(figsize=(11, 6), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1)).flat
    above, below = left.subplots(2, 1, height_ratios=(3, 2))
    dark, red = "#0b3c5d", "#b3372f"
    above.plot(np.arange(len(curve)) + 1, DT * curve, color=dark, linewidth=1.5)
    above.axhline(DT * LONGEST, color="grey", linestyle=":", linewidth=1)
    above.set(title=f"{ENVIRONMENTS:,} environments, one policy", xlabel="update of the policy")
    above.set(ylabel="length of an episode (s)", ylim=(0, 1.06 * DT * LONGEST))

    limit = float(np.rad2deg(LEAN))
    extent = (-limit, limit, -120, 120)
    shown = below.imshow(pushes, origin="lower", extent=extent, aspect="auto", cmap="PuOr_r")
    shown.set_clim(0, 1)
    left.colorbar(shown, ax=below, label="push to the right")
    below.set(title="The policy, for a cart that stands in the middle", xlabel="lean (degrees)")
    below.set(ylabel="its change (degrees/s)")

    panels = right.subplots(2, 1, sharex=True, sharey=True)
    for axes, (overs, carts), when in zip(panels, (before, after), ("Before", "After")):
        times = DT * np.arange(1, LONGEST + 1)
        for over, cart in zip(overs, np.rad2deg(carts[:, :, 2])):
            fell = over & (np.abs(cart) > limit)
            # A line for each episode: a gap where one is over.
            axes.plot(times, np.where(over, np.nan, cart), color=dark, alpha=0.55, linewidth=0.7)
            axes.plot(times[fell], np.clip(cart[fell], -limit, limit), "x", color=red, markersize=4)
        fallen = np.sum(overs & (np.abs(carts[:, :, 2]) > LEAN))
        axes.set_title(f"{when}: {len(overs)} poles, which fell {fallen} times")
        axes.set(ylabel="lean (degrees)", xlim=(0, DT * LONGEST))
    panels[1].set_xlabel("time (s)")
    for axes in (above, *panels):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)


def preferences(model: Agent, states: sm.States) -> np.ndarray:
    """How probable a push to the right is, by lean (along rows) and its change (along columns)."""
    turns = jnp.deg2rad(jnp.linspace(-120, 120, 61))
    leans = jnp.linspace(-LEAN, LEAN, 61)

    def prefer(states, turn, lean):
        logit, _ = model.look(states.set(model.cart, jnp.array([0.0, 0.0, lean, turn])))
        return jax.nn.sigmoid(logit), states

    rows = sm.vmap2(sm.vmap2(prefer, in_axes=(None, 0)), in_axes=(0, None))
    return np.asarray(rows(states, turns, leans)[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=400, help="default: %(default)s")
    parser.add_argument("--out", default="environments.png", help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="80 updates, and any progress will do")
    options = parser.parse_args()

    model, one = sm.make_with_states(Agent)(key=jr.key(1983))
    # Each environment has its own cart and its own random stream. All share the rest.
    own = sm.ShortTermState, sm.RandomState
    states, axes = sm.broadcast(one, {0: own}, axis_size=ENVIRONMENTS)
    updates = 80 if options.quick else options.updates
    learned, curve = learn(model, states, axes, updates)

    some = sm.lane(states, axes, slice(12))  # which begin anew, with one policy and the other
    policies = [s.select(sm.ParamState) for s in (states, learned)]
    before, after = (watch(model, some.merge(policy), axes) for policy in policies)
    plot(options.out, curve, before, after, preferences(model, one.merge(policies[1])))

    begin, end = curve[0], np.nanmean(curve[-10:])
    print(f"{learned[model.finished]:,} episodes, of {learned[model.balanced]:,} time steps in all")
    print(f"an episode lasted {DT * begin:.1f} s at first, and {DT * end:.1f} s in the end")
    expected = max(3 * begin, 0 if options.quick else 0.9 * LONGEST)
    if not end > expected:
        sys.exit(f"It lasted {DT * end:.2f} s; more than {DT * expected:.2f} s was expected.")


if __name__ == "__main__":
    main()
