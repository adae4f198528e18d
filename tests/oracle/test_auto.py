"""The policy "auto", with random programs and with what sets them apart."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracle.same import arange, same, values


OPERATIONS = {  # from the value of the cell, another cell and the argument to the new value
    "adds": lambda v, other, x: v + x.sum(),
    "adds the same": lambda v, other, x: v + 1.0,
    "takes the argument": lambda v, other, x: x * 2.0,
    "takes another": lambda v, other, x: other.sum() * x.mean(),
    "sets": lambda v, other, x: jnp.full_like(v, 1.0),
    "turns": lambda v, other, x: (v * x.sum()).T,
    "broadcasts": lambda v, other, x: v + x,
    "sums": lambda v, other, x: v.sum() + x.sum(),
}


def program(seed):
    rng = random.Random(seed)
    n = rng.choice([2, 3])
    shapes = [(), (n,), (n + 1,), (n, 2), (2, n), (n, n), (1,), (2,)]
    x = rng.choice([(n,), (n, 2), (n, n), (2, n)])
    cells = [rng.choice(shapes) for _ in range(rng.randint(1, 3))]
    pick = lambda: rng.randrange(len(cells))
    steps = [(rng.choice([*OPERATIONS]), pick(), pick()) for _ in range(rng.randint(1, 4))]
    axis = rng.choice([a for a, size in enumerate(x) if size == n])
    return cells, x, axis, steps, rng.choice([None, None, "in", "out", "both"]), pick()


@pytest.mark.parametrize("seed", range(24))
@same
def test_random_programs(bst, seed):
    shapes, x, axis, steps, declared, which = program(seed)
    cells = [bst.ShortTermState(arange(*shape) + k) for k, shape in enumerate(shapes)]

    def step(x):
        for name, i, j in steps:
            cells[i].value = OPERATIONS[name](cells[i].value, cells[j].value, x)
        return x.sum()

    sides = {"in": ["in"], "out": ["out"], "both": ["in", "out"], None: []}[declared]
    axes = {f"state_{side}_axes": {0: cells[which]} for side in sides}
    mapped = bst.transform.vmap2(
        step, in_axes=axis, unexpected_out_state_mapping="auto", **axes
    )  # fmt: skip
    out = []
    for k in range(2):
        try:
            out.append((mapped(arange(*x) + k), values(*cells)))
        except Exception:  # shapes that don't go together, said in other words
            out.append("refused")
            break
    return out


@same
def test_lanes_stay_on_the_axis_on_which_vmap_has_them(bst):
    cell = bst.ShortTermState(jnp.zeros(()))
    mapped = bst.transform.vmap2(
        lambda x: setattr(cell, "value", x * 2), in_axes=1, unexpected_out_state_mapping="auto"
    )
    mapped(arange(2, 3))
    assert cell.value.shape == (2, 3)
    return cell.value


@same
def test_a_cell_comes_in_on_the_axis_on_which_it_goes_out(bst):
    cell = bst.ShortTermState(arange(2, 3))

    def step(x):
        cell.value = cell.value[:, :1].sum() + x if cell.value.ndim == 2 else cell.value + x

    mapped = bst.transform.vmap2(step, in_axes=1, unexpected_out_state_mapping="auto")
    mapped(arange(2, 3))
    mapped(arange(2, 3))
    return cell.value


@same
def test_what_all_lanes_write_alike_gains_no_axis(bst):
    calls, last = bst.State(jnp.zeros(())), bst.State(jnp.zeros(()))

    def step(x):
        calls.value = calls.value + 1.0
        last.value = x

    mapped = bst.transform.vmap2(
        step, state_out_axes={0: [calls, last]}, unexpected_out_state_mapping="auto"
    )
    out = [(mapped(arange(3)), values(calls, last)) for _ in range(3)]
    assert np.shape(calls.value) == ()
    return out


@same
def test_a_pytree_of_lanes(bst):
    cell = bst.State({"a": arange(3), "b": arange(3, 2)})
    mapped = bst.transform.vmap2(
        lambda x: setattr(cell, "value", jax.tree.map(lambda v: v + x, cell.value)),
        unexpected_out_state_mapping="auto",
    )
    return mapped(arange(3)), mapped(arange(3)), cell.value
