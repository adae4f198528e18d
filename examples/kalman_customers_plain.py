"""The program of `kalman_customers.py` in plain JAX, to compare the two.

    python examples/kalman_customers_plain.py [--days N] [--out FILE] [--quick]

It is what one would write without statemap: a row for each customer in a tuple of arrays, and what
belongs to all of them in another. The customers, the checks and the picture are those of
`kalman_customers.py`. So are the results: both programs are run for some days in the end, and must
agree.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from kalman_customers import (
    BLOCK,
    correct,
    Day,
    drift,
    find,
    FREE,
    main,
    make_world,
    NEWCOMER,
    NOISE,
    padded,
    Population as WithStatemap,
)


class Customer(NamedTuple):
    """What is known of one customer; or of all of them, with a leading axis."""

    number: Int[Array, "..."]
    last: Int[Array, "..."]  # the day of the last report
    mean: Float[Array, "... 2"]
    cov: Float[Array, "... 2 2"]

    def forecast(self, today):
        """Today's mean and covariance of level and trend, from what the last report left."""
        return drift(self.mean, self.cov, (today - self.last).astype(jnp.float32))

    def join(self, today, number: Int[Array, ""], report: Float[Array, ""]):
        """Takes a free place, with a first report."""
        mean, cov = jnp.stack([report, 0.0]), jnp.diag(jnp.array([NOISE, NEWCOMER]))
        return Customer(number, today, mean, cov), (0, 0.0)

    def report(self, today, report: Float[Array, ""]):
        mean, cov = self.forecast(today)
        mean, cov, surprise = correct(mean, cov, report)
        real = ~jnp.isnan(report)  # and does not just fill up a batch
        counts = real.astype(jnp.int32), jnp.where(real, surprise, 0.0)
        return Customer(self.number, today, mean, cov), counts

    def leave(self, today):
        return self._replace(number=FREE), (0, 0.0)


class Totals(NamedTuple):
    """What is not a customer's, but the population's."""

    today: Int[Array, ""]
    reports: Int[Array, ""]
    surprise: Float[Array, ""]  # of all reports, squared


class States(NamedTuple):
    customers: Customer
    totals: Totals


class Population:
    """The population: functions from states to states."""

    def __init__(self):
        self.join, self.report = self.visit(Customer.join), self.visit(Customer.report)
        self.leave = self.visit(Customer.leave)
        self.forecasts = jax.jit(jax.vmap(Customer.forecast, in_axes=(0, None)))

    def visit(self, method: Callable[..., Any]):
        """Calls a method for the customers at some places. A place that there isn't is left out."""

        @functools.partial(jax.jit, donate_argnums=0)
        def visit(states, places, *args):
            customers, totals = states
            part = jax.tree.map(lambda x: x[places], customers)
            mapped = jax.vmap(method, in_axes=(0, None, *(0 for _ in args)), axis_size=len(places))
            part, (reports, surprise) = mapped(part, totals.today, *args)
            customers = jax.tree.map(lambda x, y: x.at[places].set(y, mode="drop"), customers, part)
            reports, surprise = totals.reports + reports.sum(), totals.surprise + surprise.sum()
            return States(customers, Totals(totals.today, reports, surprise))

        return visit

    def empty(self, places: int) -> States:
        n = (places,)
        cov = jnp.zeros((*n, 2, 2))
        customers = Customer(jnp.full(n, FREE), jnp.zeros(n, int), jnp.zeros((*n, 2)), cov)
        return States(customers, Totals(jnp.array(0), jnp.array(0), jnp.array(0.0)))

    def fit(self, states: States, newcomers: int) -> States:
        """Makes room, or gives up two blocks or more that are not needed."""
        taken = np.asarray(states.customers.number) != FREE
        places = -(-(taken.sum() + newcomers) // BLOCK) * BLOCK
        if places > len(taken):
            more = self.empty(places - len(taken)).customers
            join = lambda x, y: jnp.concatenate([x, y])
            return states._replace(customers=jax.tree.map(join, states.customers, more))
        if places < len(taken) - BLOCK:
            first = np.argsort(~taken, kind="stable")[:places]  # those that are taken
            return states._replace(customers=jax.tree.map(lambda x: x[first], states.customers))
        return states

    def run_day(self, states: States, day: Day) -> States:
        states = states._replace(totals=states.totals._replace(today=jnp.array(day.number)))
        numbers = np.array(states.customers.number)
        free = np.flatnonzero(numbers == FREE)[: len(day.joining)]
        states = self.join(states, *padded(len(numbers), free, day.joining, day.first_reports))
        reporting = find(numbers, day.reporting)
        states = self.report(states, *padded(len(numbers), reporting, day.reports))
        return self.leave(states, *padded(len(numbers), find(numbers, day.leaving)))

    def forecast(self, states: States, numbers: np.ndarray):
        """Today's means and covariances for some customers."""
        places = find(np.asarray(states.customers.number), numbers)
        some = jax.tree.map(lambda x: x[places], states.customers)
        return self.forecasts(some, states.totals.today)

    def rows(self, states: States) -> dict[str, np.ndarray]:
        """What is known of everyone, by place."""
        return {name: np.array(x) for name, x in states.customers._asdict().items()}

    def totals(self, states: States) -> tuple[int, float]:
        return int(states.totals.reports), float(states.totals.surprise)


def check_equal(n_days: int) -> None:
    """Both programs, for some days."""
    rows: list[dict[str, np.ndarray]] = []
    programs: list[Any] = [Population(), WithStatemap()]
    for population in programs:
        states = population.empty(BLOCK)
        for day in make_world(n_days).days:
            states = population.run_day(population.fit(states, len(day.joining)), day)
        rows.append(population.rows(states) | {"totals": np.array(population.totals(states))})
    ours, theirs = rows
    if not all(np.allclose(ours[name], theirs[name], 1e-4, 1e-4) for name in theirs):
        sys.exit("Plain JAX and statemap disagree.")
    same = sum(np.array_equal(ours[name], theirs[name]) for name in theirs)
    print(f"Plain JAX and statemap agree, {same} of {len(theirs)} arrays to the bit.")


if __name__ == "__main__":
    main(Population(), "kalman_customers_plain.png")
    check_equal(10)
