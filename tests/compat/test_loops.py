"""Loops and branches: what is carried, progress bars, and what runs without compilation."""

import io

import jax
import jax.numpy as jnp
import pytest

from statemap.compat import ShortTermState, State, transform, util


FOR = {
    "for_loop": lambda f, xs, **kw: transform.for_loop(f, xs, **kw),
    "checkpointed_for_loop": lambda f, xs, **kw: transform.checkpointed_for_loop(f, xs, **kw),
    "scan": lambda f, xs, **kw: transform.scan(lambda c, x: (c, f(x)), 0.0, xs, **kw)[1],
}


@pytest.fixture
def total():
    return ShortTermState(jnp.zeros(()))


# Without compilation.


@pytest.mark.parametrize("name", [*FOR, "reversed"])
def test_loops_run_in_python_without_jit(name, total):
    loop = FOR.get(name, lambda f, xs: transform.for_loop(f, xs, reverse=True))
    seen = []

    def step(x):
        total.value = total.value + x
        seen.append((float(total.value), float(x)))
        return x * 2, None

    with jax.disable_jit():
        out, none = loop(step, jnp.arange(1.0, 4.0))
        with pytest.raises(ValueError, match="zero-length scan"):
            loop(step, jnp.zeros(0))
    assert out.tolist() == [2, 4, 6] and none is None
    sums = [(6, 3), (3, 2), (1, 1)]
    assert seen == ([(3, 3), (5, 2), (6, 1)] if name == "reversed" else sums[::-1])


@pytest.mark.parametrize("most", [None, 2, 9])
def test_while_loops_run_in_python_without_jit(most, total):
    def body(x):
        total.value = total.value + float(x)
        return x + float(total.value * 0 + 1)

    def run():
        if most is None:
            return transform.while_loop(lambda x: x < 3 and bool(total.value < 99), body, 0.0)
        return transform.bounded_while_loop(lambda x: bool(x < 3), body, 0.0, max_steps=most)

    with jax.disable_jit():
        assert run() == (2 if most == 2 else 3)
    assert total.value == (1 if most == 2 else 3)


def test_branches_run_in_python_without_jit(total):
    def add(x):
        total.value = total.value + float(x) * float(total.value + 1)
        return x

    other = lambda x: pytest.fail("the other branch ran")
    with jax.disable_jit():
        assert transform.cond(True, add, other, 2.0) == 2
        assert transform.cond(jnp.zeros(()), other, add, 2.0) == 2
        assert transform.switch(7, [other, add], 1.0) == 1
        assert transform.ifelse([False, True], [other, add], 1.0) == 1
    assert total.value == 2 + 6 + 9 + 18


def test_what_is_mapped_is_traced_also_without_jit(total):
    f = lambda x: transform.cond(x > 0, lambda: x + total.value, lambda: -x)
    loop = lambda x: transform.while_loop(lambda y: y < x, lambda y: y + total.value + 1, 0.0)
    xs = jnp.array([-1.0, 2.0])
    with jax.disable_jit():
        assert jax.vmap(f)(xs).tolist() == [1, 2]
        assert jax.vmap(loop)(xs).tolist() == [0, 2]
        assert transform.grad(lambda x: transform.for_loop(f, xs * x).sum())(1.0) == 3


# What is carried.


def test_what_is_written_back_as_it_was_is_not_written():
    shared, lanes = State(jnp.ones(())), ShortTermState(jnp.arange(3.0))
    axes = {0: util.filter.OfType(ShortTermState)}

    def same():
        shared.value = shared.value
        lanes.value = lanes.value + 1
        return 1.0

    @transform.vmap2(state_in_axes=axes, state_out_axes=axes)
    def lane(x):  # a branch that only some lanes take
        return transform.cond(x > 0, same, lambda: 0.0)

    assert lane(jnp.array([1.0, -1.0, 1.0])).tolist() == [1, 0, 1]
    assert lanes.value.tolist() == [1, 1, 3] and shared.value == 1
    count, text = State(3), State("a word")
    rewrite = lambda: [setattr(c, "value", c.value) for c in (count, text)] and 1.0
    assert transform.cond(True, rewrite, lambda: 2.0) == 1
    assert count.value == 3 and type(count.value) is int and text.value == "a word"


def test_what_is_changed_in_place_is_written():
    cell = State({"x": jnp.zeros(())})

    def add(x):
        value = cell.value
        value["x"] = value["x"] + x
        cell.value = value
        return value["x"]

    assert transform.for_loop(add, jnp.ones(3)).tolist() == [1, 2, 3]
    assert cell.value["x"] == 3


def test_a_number_becomes_what_a_branch_makes_of_it():
    for first in (True, False):
        rate = State(1.0)
        double = lambda r=rate: setattr(r, "value", r.value * jnp.full((), 2, "float16"))
        transform.cond(first, double, lambda: None)
        assert rate.value == (2 if first else 1) and rate.value.dtype == jnp.float16


def test_a_length_of_zero_is_a_length():
    assert transform.for_loop(lambda: 1.0, length=0).shape == (0,)
    with pytest.raises(ValueError, match=r"needs one length.*`length` is 0"):
        transform.for_loop(lambda x: x, jnp.ones(3), length=0)


# Progress bars.


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", FOR)
def test_progress(name, jit, total):
    file = io.StringIO()

    def step(x):
        total.value = total.value + x
        return x * 10

    def describe(data):
        assert set(data) == {"i", "carry", "y"}
        return {"i": data["i"], "sum": total.value, "y": data["y"], "c": data["carry"]}

    bar = transform.ProgressBar(freq=2, desc=("at {i}: {sum:.1f}, {y}", describe), file=file)
    run = lambda xs: FOR[name](step, xs, pbar=bar)
    for _ in range(2):
        total.value = jnp.zeros(())
        out = (transform.jit(run) if jit else run)(jnp.ones(5))
        jax.effects_barrier()
        assert out.tolist() == [10.0] * 5 and total.value == 5
        shown = file.getvalue()
        file.seek(0), file.truncate()
        assert "at 0: 1.0, 10.0" in shown and "at 1: 2.0" in shown and "at 3: 4.0" in shown
        assert "at 4: 5.0, 10.0" in shown and "5/5" in shown and "at 2" not in shown


def test_progress_in_short():
    for bar in (7, 1, transform.ProgressBar(count=2, desc="steps", file=io.StringIO())):
        carry, ys = transform.scan(lambda c, x: (c + x, c), 0.0, jnp.ones(3), pbar=bar)
        jax.effects_barrier()
        assert carry == 3 and ys.tolist() == [0, 1, 2]
    with jax.disable_jit():
        assert transform.for_loop(lambda x: x, jnp.ones(3), pbar=2).tolist() == [1, 1, 1]


@pytest.mark.parametrize("options, match", [
    ({"freq": 1, "count": 2}, "`freq` or `count`"),
    ({"freq": 0}, "`freq` is a positive integer"),
    ({"desc": 3}, "`desc` is a text"),
    ({"desc": ("a",)}, "`desc` is a text"),
    ({"desc": ("a", "b")}, "`desc` is a text"),
])  # fmt: skip
def test_bars_that_are_none(options, match):
    with pytest.raises((TypeError, ValueError), match=match):
        transform.ProgressBar(**options)


def test_a_description_is_filled_from_a_dictionary():
    bar = transform.ProgressBar(desc=("{i}", lambda data: data["i"]))
    with pytest.raises(TypeError, match="returns a dictionary"):
        transform.for_loop(lambda x: x, jnp.ones(2), pbar=bar)
    with pytest.raises(TypeError, match="`pbar` is a ProgressBar or a number"):
        transform.for_loop(lambda x: x, jnp.ones(2), pbar=True)
