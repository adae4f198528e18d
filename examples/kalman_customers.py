"""A Kalman filter for each of 100,000 customers, who report, join and leave as they please.

    python examples/kalman_customers.py [--days N] [--out FILE] [--quick]

needs `pip install matplotlib tqdm` and shows

- a population of which few members change at a time: `lane` takes them, a mapping updates them and
  `put` writes them back, in one compiled call that is given the memory of the old context;
- members that join and leave without a new compilation: the population has places, of which some
  are free. It grows by blocks of them (`concatenate`) and gives them back (`lane`);
- numbers of the population as a whole, to which every report adds its part (`Reduce`);
- a checkpoint halfway, of the context and nothing else, from which the second half runs again to
  the same bits; some customers checked against plain NumPy; and a check, each day, that those who
  did nothing are what they were.

A customer has a level and a trend, which both wander. Each report is the level, and noise. Silent
days cost nothing: the next report makes up for them.
"""

import argparse
import functools
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure
from tqdm import tqdm

import statemap as sm


CUSTOMERS = 100_000
BLOCK = 8192  # places by which the population grows and shrinks
FREE = -1  # the number of the customer in a free place
LEVEL, TREND, NOISE = 0.1, 0.003, 4.0  # what a day adds to level and trend, and noise: variances
NEWCOMER = 0.02  # the variance of a newcomer's trend


class Customer(eqx.Module):
    """What is known of one customer. The fields declare states, which a `States` context holds."""

    number: sm.LongTermState[Int[Array, ""]] = sm.field(FREE)
    last: sm.LongTermState[Int[Array, ""]] = sm.field(0)  # the day of the last report
    mean: sm.LongTermState[Float[Array, "2"]] = sm.field(lambda: jnp.zeros(2))
    cov: sm.LongTermState[Float[Array, "2 2"]] = sm.field(lambda: jnp.zeros((2, 2)))
    # These are not a customer's, but the population's.
    today: sm.NonBatchState[Int[Array, ""]] = sm.field(0)
    reports: sm.NonBatchState[Int[Array, ""]] = sm.field(0)
    surprise: sm.NonBatchState[Float[Array, ""]] = sm.field(0.0)  # of all reports, squared

    def forecast(self, states: sm.States):
        """Today's mean and covariance of level and trend, from what the last report left."""
        days = states[self.today] - states[self.last]
        mean, cov = drift(states[self.mean], states[self.cov], days.astype(jnp.float32))
        return (mean, cov), states

    def join(self, states: sm.States, number: Int[Array, ""], report: Float[Array, ""]):
        """Takes a free place, with a first report."""
        mean, cov = jnp.stack([report, 0.0]), jnp.diag(jnp.array([NOISE, NEWCOMER]))
        states = states.update({self.number: number, self.last: states[self.today]})
        return None, states.update({self.mean: mean, self.cov: cov})

    def report(self, states: sm.States, report: Float[Array, ""]):
        (mean, cov), states = self.forecast(states)
        mean, cov, surprise = correct(mean, cov, report)
        real = ~jnp.isnan(report)  # and does not just fill up a batch
        states = states.update({self.mean: mean, self.cov: cov, self.last: states[self.today]})
        states = states.set(self.reports, states[self.reports] + real)
        surprise = states[self.surprise] + jnp.where(real, surprise, 0.0)
        return None, states.set(self.surprise, surprise)

    def leave(self, states: sm.States):
        return None, states.set(self.number, FREE)


class Population:
    """The population: functions from a context to a context."""

    def __init__(self):
        model, _, self.axes = sm.vmap2_new_states(Customer, axis_size=BLOCK)
        self.model = model
        self.join, self.report = self.visit(model.join), self.visit(model.report)
        self.leave = self.visit(model.leave)
        self.forecasts = sm.vmap2(model.forecast, state_in_axes=self.axes)

    def visit(self, method: Callable[..., Any]):
        """Calls a method for the members at some places. A place that there isn't is left out."""
        totals = {sm.Reduce("changes"): [self.model.reports, self.model.surprise]}
        mapped = sm.vmap2(method, state_in_axes=self.axes, state_out_axes=totals | {**self.axes})

        @functools.partial(jax.jit, donate_argnums=0)
        def visit(states, places, *args):
            _, part = mapped(sm.lane(states, self.axes, places), *args)
            return sm.put(states, self.axes, places, part, shared="new")

        return visit

    def empty(self, places: int) -> sm.States:
        _, states, _ = sm.vmap2_new_states(Customer, axis_size=places)
        return states

    def fit(self, states: sm.States, newcomers: int) -> sm.States:
        """Makes room, or gives up two blocks or more that are not needed."""
        taken = np.asarray(states[self.model.number]) != FREE
        places = -(-(taken.sum() + newcomers) // BLOCK) * BLOCK
        if places > len(taken):
            more = self.empty(places - len(taken))
            return sm.concatenate([states, more], self.axes, shared="first")
        if places < len(taken) - BLOCK:
            first = np.argsort(~taken, kind="stable")[:places]  # those that are taken
            return sm.lane(states, self.axes, first)
        return states

    def run_day(self, states: sm.States, day: "Day") -> sm.States:
        states = states.set(self.model.today, day.number)
        numbers = np.array(states[self.model.number])
        free = np.flatnonzero(numbers == FREE)[: len(day.joining)]
        states = self.join(states, *padded(len(numbers), free, day.joining, day.first_reports))
        reporting = find(numbers, day.reporting)
        states = self.report(states, *padded(len(numbers), reporting, day.reports))
        return self.leave(states, *padded(len(numbers), find(numbers, day.leaving)))

    def forecast(self, states: sm.States, numbers: np.ndarray):
        """Today's means and covariances for some customers."""
        places = find(np.asarray(states[self.model.number]), numbers)
        (means, covs), _ = self.forecasts(sm.lane(states, self.axes, places))
        return means, covs

    def rows(self, states: sm.States) -> dict[str, np.ndarray]:
        """What is known of everyone, by place."""
        of_members = states.select(self.axes[0])
        return {path[-1]: np.array(state.value) for path, state in of_members}

    def totals(self, states: sm.States) -> tuple[int, float]:
        return int(states[self.model.reports]), float(states[self.model.surprise])


def drift(mean, cov, days):
    """What some days without a report make of an estimate."""
    step = jnp.array([[1.0, 0.0], [0.0, 1.0]]).at[0, 1].set(days)
    once, twice = days * (days - 1) / 2, days * (days - 1) * (2 * days - 1) / 6
    level, both, trend = LEVEL * days + TREND * twice, TREND * once, TREND * days
    return step @ mean, step @ cov @ step.T + jnp.array([[level, both], [both, trend]])


def correct(mean, cov, report):
    """What a report makes of an estimate, and its squared surprise: 1, on average."""
    variance, error = cov[0, 0] + NOISE, report - mean[0]
    gain = cov[:, 0] / variance
    return mean + gain * error, cov - jnp.outer(gain, cov[0]), error**2 / variance


def find(numbers: np.ndarray, customers: np.ndarray) -> np.ndarray:
    """The places of some customers."""
    places = np.full(max(numbers.max(), customers.max(initial=0)) + 2, -1)  # the last, for `FREE`
    places[numbers] = np.arange(len(numbers))
    if (places[customers] < 0).any():
        raise KeyError(f"There are no customers {customers[places[customers] < 0]}.")
    return places[customers]


def padded(n_places: int, places: np.ndarray, *args: np.ndarray):
    """A batch filled up to a power of two, with places that there aren't: few sizes to compile."""
    more = (1 << max(len(places) - 1, 1).bit_length()) - len(places)
    places = np.pad(places, (0, more), constant_values=n_places)
    fill = {"f": np.nan, "i": FREE}
    return places, *(np.pad(x, (0, more), constant_values=fill[x.dtype.kind]) for x in args)


class Day(NamedTuple):
    """What happens in a day: the numbers of customers, and reports."""

    number: int
    joining: np.ndarray
    first_reports: np.ndarray
    reporting: np.ndarray
    reports: np.ndarray
    leaving: np.ndarray


class World(NamedTuple):
    """What happens, and what is never seen: the true levels."""

    days: list[Day]
    levels: np.ndarray  # by day and customer
    sizes: np.ndarray  # how many customers there are at the end of each day


def make_world(n_days: int, seed: int = 0) -> World:
    rng = np.random.default_rng(seed)
    # More join than leave, until many leave within a few days.
    crisis = np.arange(n_days) // max(n_days // 20, 1) == 12
    joining = np.r_[CUSTOMERS, rng.poisson(CUSTOMERS * 0.2 / n_days * 2, n_days - 1)]
    chance = np.where(crisis, 0.3 / max(crisis.sum(), 1), 0.1 / n_days)
    total = joining.sum()
    level, trend = rng.normal(50, 15, total), np.zeros(total)
    often = rng.choice([1 / 5, 1 / 20, 1 / 60], total)
    here, n_joined, days, levels, sizes = np.zeros(total, bool), 0, [], [], []
    for number in range(n_days):
        new = np.arange(n_joined, n_joined + joining[number])
        n_joined += len(new)
        trend[new] = rng.normal(0, NEWCOMER**0.5, len(new))
        reporting = np.flatnonzero(here & (rng.random(total) < often))
        leaving = np.flatnonzero(here & (rng.random(total) < chance[number]))
        here[new], here[leaving] = True, False
        reports = level + rng.normal(0, NOISE**0.5, total)
        first, later = (reports[who].astype(np.float32) for who in (new, reporting))
        days.append(Day(number, new, first, reporting, later, leaving))
        levels.append(level.astype(np.float32))
        sizes.append(here.sum())
        level = level + trend + rng.normal(0, LEVEL**0.5, total)
        trend = trend + rng.normal(0, TREND**0.5, total)
    return World(days, np.array(levels), np.array(sizes))


def numpy_filter(days: list[Day], customer: int):
    """The mean and covariance of one customer by hand: day after day, in double precision."""
    step, mean, cov = np.array([[1.0, 1.0], [0.0, 1.0]]), np.zeros(2), np.zeros((2, 2))
    for day in days:
        mean, cov = step @ mean, step @ cov @ step.T + np.diag([LEVEL, TREND])
        if customer in day.joining:
            (report,) = day.first_reports[day.joining == customer]
            mean, cov = np.array([report, 0.0]), np.diag([NOISE, NEWCOMER])
        if customer in day.reporting:
            (report,) = day.reports[day.reporting == customer]
            gain = cov[:, 0] / (cov[0, 0] + NOISE)
            mean, cov = mean + gain * (report - mean[0]), cov - np.outer(gain, cov[0])
    return mean, cov


def stories(world: World) -> dict[str, tuple[int, np.ndarray]]:
    """Three customers to draw, who report often, and on which days they are there."""
    days = np.arange(len(world.days))
    last = np.full(world.levels.shape[1], len(days))
    first, count = np.zeros_like(last), np.zeros_like(last)
    for day in world.days:
        first[day.joining], last[day.leaving] = day.number, day.number
        np.add.at(count, day.reporting, 1)
    third = len(days) // 3
    kinds = {
        "stays": (first == 0) & (last == len(days)),
        "joins": (first >= third) & (last == len(days)),
        "leaves": (first == 0) & (last < len(days)) & (last > 2 * third),
    }
    chosen = {kind: np.flatnonzero(which)[:200] for kind, which in kinds.items()}
    best = {kind: who[count[who].argmax()] for kind, who in chosen.items()}
    return {kind: (who, (first[who] <= days) & (days < last[who])) for kind, who in best.items()}


class Log(NamedTuple):
    """What is kept of a day: places, reports and their squared surprise so far, and forecasts."""

    places: int
    reports: int
    surprise: float
    means: np.ndarray
    covs: np.ndarray


def run(population, states, days: list[Day], told) -> tuple[Any, list[Log]]:
    """Runs some days. The log has forecasts for those whose stories are `told`."""
    log = []
    for day in tqdm(days, desc="Days", unit="day"):
        states = population.fit(states, len(day.joining))
        before = population.rows(states)
        states = population.run_day(states, day)
        after = population.rows(states)
        check_others(before, after, day)
        means, covs = np.full((len(told), 2), np.nan), np.full((len(told), 2, 2), np.nan)
        there = np.array([here[day.number] for _, here in told.values()])
        if there.any():
            who = np.array([who for who, _ in told.values()])[there]
            means[there], covs[there] = population.forecast(states, who)
        reports, surprise = population.totals(states)
        log.append(Log(len(after["number"]), reports, surprise, means, covs))
    return states, log


def check_others(before: dict[str, np.ndarray], after: dict[str, np.ndarray], day: Day):
    """Whoever did nothing is what he was, to the bit."""
    did = np.concatenate([day.joining, day.reporting, day.leaving])
    others = ~np.isin(before["number"], did) & ~np.isin(after["number"], did)
    for name in before:
        if not np.array_equal(before[name][others], after[name][others]):
            sys.exit(f"On day {day.number} the `{name}` of customers changed who did nothing.")


def check_halves(population, states, again) -> None:
    ours, theirs = population.rows(states), population.rows(again)
    same = all(np.array_equal(ours[name], theirs[name]) for name in ours)
    if not same or population.totals(states) != population.totals(again):
        sys.exit("The second half came out differently after the checkpoint was restored.")
    print("The second half, from the checkpoint: equal to the bit.")


def check_numpy(rows: dict[str, np.ndarray], days: list[Day], count: int) -> None:
    """Some customers, by hand up to their last report."""
    there = np.flatnonzero((rows["number"] != FREE) & (rows["last"] > 0))
    worst = 0.0
    for place in there[:: len(there) // count]:
        mean, cov = numpy_filter(days[: rows["last"][place] + 1], int(rows["number"][place]))
        for ours, theirs in ((rows["mean"][place], mean), (rows["cov"][place], cov)):
            worst = max(worst, np.max(np.abs(ours - theirs) / (1 + np.abs(theirs))))
    print(f"{count} customers by NumPy: {worst:.1g} apart at most, relatively.")
    if not worst < 1e-3:
        sys.exit("Below 0.001 was expected.")


def plot(file, world: World, log: list[Log], told) -> None:
    """Draws three customers, with a band of two standard deviations; how many there are; and the
    mean squared surprise of each day's reports.
    """
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(3, 2)).flat
    days = np.arange(len(log))
    means, covs = np.array([day.means for day in log]), np.array([day.covs for day in log])
    rows = left.subplots(len(told), 1, sharex=True)
    for k, (axes, (kind, (who, here))) in enumerate(zip(rows, told.items())):
        mean, width = means[:, k, 0], 2 * np.sqrt(covs[:, k, 0, 0])
        axes.fill_between(days, mean - width, mean + width, color="#2e86ab", alpha=0.25, lw=0)
        axes.plot(days, mean, color="#2e86ab", label="estimate, ±2 standard deviations")
        truth = np.where(here, world.levels[:, who], np.nan)
        axes.plot(days, truth, color="black", lw=1, label="truth")
        reports = np.array(
            [
                (d.number, y)
                for d in world.days
                for w, ys in ((d.joining, d.first_reports), (d.reporting, d.reports))
                for y in ys[w == who]
            ]
        )
        axes.plot(*reports.T, "o", color="#b3372f", ms=3.5, label="report")
        axes.set_ylabel("level")
        axes.set_title(f"Customer {who:,} {kind}", loc="left", fontsize=10)
    rows[-1].legend(loc="upper left", frameon=False, ncols=3, fontsize=8)
    rows[-1].set(xlabel="day", xlim=(0, days[-1]))

    above, below = right.subplots(2, 1, sharex=True)
    places = [day.places / 1000 for day in log]
    above.fill_between(days, world.sizes / 1000, color="#2e86ab", alpha=0.4, lw=0)
    above.plot(days, world.sizes / 1000, color="#2e86ab", label="customers")
    above.plot(days, places, color="black", lw=1.2, drawstyle="steps-mid", label="places")
    above.set(ylabel="thousands", ylim=(0, None), title="The population")
    above.legend(loc="lower left", frameon=False)
    reports, surprise = (np.array([getattr(d, n) for d in log]) for n in ("reports", "surprise"))
    with np.errstate(invalid="ignore"):
        below.plot(days[1:], np.diff(surprise) / np.diff(reports), color="#d98b2b")
    below.axhline(1.0, color="black", lw=0.8, ls=":")
    below.set(title="Squared surprise of a day's reports", xlabel="day", ylim=(0.95, 1.05))
    below.set(ylabel="mean (1 if all is well)")
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    figure.savefig(file, dpi=150)


def main(population, out: str) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--days", type=int, default=180, help="default: %(default)s")
    parser.add_argument("--out", default=out, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="40 days")
    options = parser.parse_args()
    n_days = 40 if options.quick else options.days

    world = make_world(n_days)
    told = stories(world)
    start = time.perf_counter()
    half = n_days // 2
    states, first = run(population, population.empty(BLOCK), world.days[:half], told)
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "customers.eqx")
        eqx.tree_serialise_leaves(file, states)
        states, second = run(population, states, world.days[half:], told)
        log = first + second
        # `like` says what to expect, and its numbers don't matter.
        restored = eqx.tree_deserialise_leaves(file, like=population.empty(first[-1].places))
    print(f"{time.perf_counter() - start:.1f} s, compilation included", file=sys.stderr)
    again, _ = run(population, restored, world.days[half:], told)

    rows, (reports, surprise) = population.rows(states), population.totals(states)
    print(f"{world.sizes[0]:,} customers at first, {world.sizes[-1]:,} in the end.")
    print(f"Places for {', '.join(f'{n:,}' for n in sorted({day.places for day in log}))}.")
    print(f"{reports:,} reports, of a mean squared surprise of {surprise / reports:.3f}.")
    plot(options.out, world, log, told)
    check_halves(population, states, again)
    check_numpy(rows, world.days, 100)
    if sorted(rows["number"][rows["number"] != FREE]) != present(world.days):
        sys.exit("The population holds other customers than those who are there.")
    if not 0.97 < surprise / reports < 1.03:
        sys.exit("A filter that fits its customers is surprised by 1.")


def present(days: list[Day]) -> list[int]:
    """The numbers of those who joined and have not left."""
    joined, left = (np.concatenate([getattr(d, n) for d in days]) for n in ("joining", "leaving"))
    return sorted(np.setdiff1d(joined, left))


if __name__ == "__main__":
    main(Population(), "kalman_customers.png")
