"""What is refused with a sentence, and what works although it looks as if it might not."""

import jax
import jax.numpy as jnp
import pytest

import statemap as sm
from statemap import compat
from statemap.compat import (
    LongTermState,
    nn,
    ParamState,
    random,
    ShortTermState,
    State,
    transform,
    util,
)


AXIS0 = {0: util.filter.OfType(ShortTermState)}


def test_shapes_are_kept_inside_maps():
    cell = ShortTermState(jnp.zeros((4, 3)))

    def resize(x):
        cell.value = jnp.zeros(5) + x

    with pytest.raises(ValueError, match=r"`cell` was given a value of another shape.*f32\[3\]"):
        transform.vmap2(resize, state_in_axes=AXIS0)(jnp.ones(4))
    assert cell.value.shape == (4, 3)
    transform.jit(lambda: resize(jnp.ones(5)))()  # elsewhere, as in brainstate
    assert cell.value.shape == (5,)
    with pytest.raises(TypeError, match=r"In `for_loop`, .* ShortTermState stay .*float32\[5\]"):
        transform.for_loop(lambda _: setattr(cell, "value", jnp.zeros(2)), jnp.arange(3))


def test_a_cell_made_under_a_transform_is_gone_with_it():
    made = []

    @transform.jit
    def make(x):
        made.append(ShortTermState(x))
        made[-1].value = made[-1].value * 2
        return made[-1].value

    assert make(2.0) == 4
    with pytest.raises(compat.TraceContextError, match="was made under a transform, and its value"):
        made[-1].value
    made[-1].value = 3.0
    assert made[-1].value == 3.0


def test_values_that_are_no_arrays():
    label = State("a word")
    assert label.value == "a word"
    with pytest.raises(TypeError, match="is used under a transform and holds 'a word'"):
        transform.jit(lambda: label.value and 1)()
    count = State(0)
    transform.jit(lambda: setattr(count, "value", count.value + 1))()
    assert count.value == 1


def test_states_as_arguments_are_refused():
    cell = State(0.0)
    for call in (
        lambda: transform.jit(lambda c: c.value)(cell),
        lambda: transform.vmap2(lambda c: 0, axis_size=2)(cell),
        lambda: transform.for_loop(lambda _: cell, jnp.arange(2)),
    ):
        with pytest.raises((ValueError, TypeError), match="State"):
            call()


def test_pmap2_compiles_once():
    cell, runs = ShortTermState(jnp.zeros(8)), []

    @transform.pmap2(axis_name="i", state_in_axes=AXIS0)
    def step(x):
        runs.append(1)
        cell.value = cell.value + jax.lax.psum(x, "i")
        return cell.value

    for _ in range(3):
        out = step(jnp.arange(8.0))
    assert len(runs) == 1 and out.tolist() == [84.0] * 8
    assert len(cell.value.sharding.device_set) == 8


def test_map_in_batches_takes_functions_that_write():
    runs, rows = ShortTermState(jnp.zeros((), int)), ShortTermState(jnp.zeros(()))

    def f(x):
        runs.value = runs.value + 1
        rows.value = x
        return x * 2 + 0 * random.normal()

    assert transform.map(f, jnp.arange(4.0)).tolist() == [0, 2, 4, 6]
    assert runs.value == 4 and rows.value == 3
    out = transform.map(f, jnp.arange(7.0), batch_size=3)
    assert out.tolist() == [2 * i for i in range(7)]
    assert runs.value == 5 and rows.value.tolist() == list(range(7))


def test_fewer_lanes_than_devices():
    cell = ShortTermState(jnp.zeros(4))
    step = transform.pmap2(
        lambda x: setattr(cell, "value", cell.value + x), axis_size=4, state_in_axes=AXIS0
    )
    step(jnp.arange(4.0))
    assert cell.value.tolist() == [0, 1, 2, 3] and len(cell.value.sharding.device_set) == 4

    class Scale(nn.Module):
        def init_state(self):
            self.weight = ParamState(jnp.ones(2))

        def update(self, x):
            return self.weight.value * x

    mapped = nn.Map(Scale(), init_map_size=4, behavior="pmap")
    mapped.init_all_states()
    assert mapped.update(jnp.arange(4.0)).tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]


def test_the_policy_auto_sees_through_other_transforms():
    for n in (3, None):  # a value for each lane from the start, or from the first call on
        cell = ShortTermState(jnp.zeros(n or ()))

        def f(x, cell=cell):
            new = transform.cond(x > 0.0, lambda: cell.value + x, lambda: cell.value)
            cell.value = new
            return transform.grad(lambda y: (new * y).sum())(x)

        mapped = transform.vmap2(f, unexpected_out_state_mapping="auto")
        for _ in range(2):
            mapped(jnp.arange(3.0))
        assert cell.value.tolist() == [0, 2, 4]
        cell.value = jnp.zeros(())
        mapped(jnp.arange(3.0))
        assert cell.value.tolist() == [0, 1, 2]


def test_a_cell_made_under_a_transform_of_jax():
    made = []
    jax.vmap(lambda x: made.append(State(x)))(jnp.ones(2))
    with pytest.raises(compat.TraceContextError, match="made under a transform"):
        made[0].value


def test_numbers_become_what_a_loop_makes_of_them():
    count = ShortTermState(0)
    with jax.numpy_dtype_promotion("standard"):
        transform.for_loop(lambda x: setattr(count, "value", count.value + x), jnp.ones(3))
    assert count.value == 3.0


def test_branches_that_disagree_name_the_cell():
    cell = ShortTermState(jnp.zeros(3), name="v")

    def write(n):
        return lambda: setattr(cell, "value", jnp.zeros(n))

    for other in (lambda: None, write(3)):
        with pytest.raises(TypeError, match="In `cond`, .* ShortTermState `v` stay "):
            transform.cond(True, write(4), other)
    transform.cond(True, write(4), write(4))
    assert cell.value.shape == (4,)


def test_the_two_kinds_of_states_are_not_mixed_up():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = sm.ParamState(jnp.ones(2))

    with pytest.raises(TypeError, match="Right:  self.weight = statemap.compat.ParamState"):
        Mixed()
    states = sm.States(w=sm.ParamState(jnp.ones(2)))
    with pytest.raises(TypeError, match="is a class of the shim"):
        states.select(ParamState)


def test_unused_grad_states_are_named():
    a, b = ParamState(jnp.ones(())), ParamState(jnp.ones(()))
    with pytest.raises(ValueError, match=r"does not use `grad_states\['y'\]`, a ParamState"):
        transform.grad(lambda: a.value, {"x": a, "y": b})()
    assert transform.grad(lambda: a.value, [a, b], check_states=False)() == [1, 0]


def test_the_rules_of_the_core_combine_what_lanes_write():
    total, last = ShortTermState(jnp.array(0.0)), LongTermState(jnp.array(7.0))

    def write(x):
        total.value = total.value + x
        last.value = x

    axes = {sm.Reduce("mean"): ShortTermState, sm.Restore: LongTermState}
    transform.vmap2(write, state_out_axes=axes)(jnp.arange(3.0))
    assert total.value == 1 and last.value == 7
    with pytest.raises(TypeError, match="is no axis"):
        transform.vmap2(write, state_in_axes={sm.Reduce("mean"): ShortTermState})
