"""The shim's `Map` and `Vmap`."""

import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from statemap.compat import (
    BatchAxisError,
    nn,
    NonBatchState,
    ParamState,
    random,
    ShortTermState,
    State,
    transform,
)
from statemap.compat.nn._map import MapBehaviour
from statemap.compat.nn._vmap import VmapBehaviour
from statemap.compat.nn._walk import nodes, states
from statemap.compat.util.filter import OfType, PathContains

from .test_nn import Dot


class Cell(nn.Module):
    """Counts its calls, which are traces."""

    def __init__(self):
        super().__init__()
        self.runs = 0
        self.bias = ParamState(jnp.ones(()))  # not made by `init_state`: shared

    def init_state(self, size=3):
        self.w = ParamState(jnp.ones(size))
        self.v = ShortTermState(jnp.zeros(size))
        self.t = NonBatchState(jnp.zeros(()))

    def update(self, x):
        self.runs += 1
        self.v.value = self.v.value + x
        return self.v.value @ self.w.value + self.bias.value

    def predict(self, x):
        self.runs += 1
        return x @ self.w.value

    def tick(self):
        self.t.value = self.t.value + 1

    def centred(self, x):
        return x - jax.lax.pmean(x, "members")


def population(n=4, size=3, **kwargs):
    made = nn.Map(Cell(), init_map_size=n, **kwargs)
    made.init_all_states(size=size)
    return made


def test_map():
    made = population()
    module = made.module
    by_axis = {axis: set(cells) for axis, cells in made.dict_vmap_states.items()}
    assert by_axis == {0: {module.w, module.v}, None: {module.t}}
    assert module.w.value.shape == module.v.value.shape == (4, 3) and module.t.value.shape == ()
    out = made(jnp.ones((4, 3)))
    np.testing.assert_array_equal(out, jnp.full(4, 4.0))
    np.testing.assert_array_equal(made.update(2 * jnp.ones((4, 3))), jnp.full(4, 10.0))
    np.testing.assert_array_equal(module.v.value, jnp.full((4, 3), 3.0))
    assert list(made.states()) == [("module", k) for k in ("bias", "t", "v", "w")]
    assert list(made.nodes()) == [("module",), ()]


def test_a_warm_call_runs_no_code_of_the_module():
    made = population()
    x = jnp.ones((4, 3))
    made(x), made.map("predict")(x), made.map(Cell.predict)(x)
    module = made.module
    assert module.runs == 3
    made(x), made.map("predict")(x), made.map(Cell.predict)(x), made.map(module.predict)(x)
    assert module.runs == 3
    made.map("predict", in_axes=None, out_axes=0)(x[0])
    assert module.runs == 4
    assert made.map("predict") is made.map("predict") is not made.map("predict", out_axes=-1)
    one, two = (made.map("predict", state_axes={0: OfType(ParamState)}) for _ in range(2))
    assert one is two is not made.map("predict")


def test_callers_are_bounded():
    made = population()
    for i in range(100):
        made.map(lambda module, x: x, out_axes=0)
    assert len(made._kept) == 64


def test_unhashable_options():
    class Odd:
        __hash__ = None

        def __call__(self, path, cell):
            return False

    made = population()
    np.testing.assert_array_equal(
        made.map("predict", state_axes={1: Odd()})(jnp.ones((4, 3))), jnp.full(4, 3.0)
    )


def test_map_of_a_function_gets_the_module_first():
    made = population()
    x = jnp.ones((4, 3))

    def scaled(module, x, by):
        return by * module.predict(x)

    out = made.map(scaled, in_axes=(0, None))(x, 2.0)
    np.testing.assert_array_equal(out, jnp.full(4, 6.0))
    np.testing.assert_array_equal(made.map(functools.partial(scaled, by=3.0))(x), jnp.full(4, 9.0))
    np.testing.assert_array_equal(made.map(functools.partial(scaled, by=4.0))(x), jnp.full(4, 12.0))
    np.testing.assert_array_equal(made.map(made.module.predict)(x), jnp.full(4, 3.0))
    made.map(made.module)(x)
    assert (made.module.v.value == 1).all()


def test_map_inherits_the_name_of_the_axis():
    made = population(axis_name="members")
    x = jnp.arange(4.0)
    caller = made.map("centred")
    assert caller.axis_name == "members"
    np.testing.assert_array_equal(caller(x), x - 1.5)
    other = made.map(lambda module, x: jax.lax.psum(x, "own"), axis_name="own", out_axes=None)
    assert other(x) == 6


def test_axes_of_states():
    made = population(init_state_axes={1: ParamState, 0: ShortTermState})
    module = made.module
    assert module.w.value.shape == (3, 4) and module.v.value.shape == (4, 3)
    x = jnp.ones((4, 3))
    np.testing.assert_array_equal(made(x), jnp.full(4, 4.0))
    assert module.v.value.shape == (4, 3)
    # what `state_axes` matches is taken from there, and the rest from where it was made
    module.w.value = module.w.value.T
    module.v.value = jnp.zeros((4, 3))
    caller = made.map("update", state_axes={0: module.w})
    np.testing.assert_array_equal(caller(x), jnp.full(4, 4.0))
    assert module.v.value.shape == (4, 3)
    assert caller.state_axes[0]((), module.w) and not caller.state_axes[1]((), module.w)


def test_call_state_axes():
    made = population(call_state_axes={None: "frozen"})
    module = made.module
    x = jnp.ones((4, 3))
    module.w.value = 2 * jnp.ones(3)
    module.w.add_tag("frozen")
    axes = made.map("predict").state_axes
    assert axes[None]((), module.w) and not axes[0]((), module.w) and axes[0]((), module.v)
    np.testing.assert_array_equal(made.map("predict")(x), jnp.full(4, 6.0))
    back = made.map("predict", state_axes={0: module.w}).state_axes
    assert back[0]((), module.w) and not back[None]((), module.w)


def test_shared_states_stay_shared():
    made = population()
    made.map("tick", in_axes=None, out_axes=None)()
    assert made.module.t.value == 1 and made.module.t.value.shape == ()
    before = made.module.bias.value

    def train(module, x):
        module.v.value = module.v.value + x
        module.bias.value = x.sum()

    with pytest.raises(BatchAxisError, match="shared by all lanes"):
        made.map(train, out_axes=None)(jnp.arange(12.0).reshape(4, 3))
    assert made.module.bias.value is before and (made.module.v.value == 0).all()


def test_init_all_states_again_makes_other_cells():
    made = population()
    x = jnp.ones((4, 3))
    predict = made.map("predict")
    made(x), predict(x)
    made.init_all_states(size=5)
    x = jnp.ones((4, 5))
    np.testing.assert_array_equal(made(x), jnp.full(4, 6.0))
    np.testing.assert_array_equal(predict(x), jnp.full(4, 5.0))
    assert made.module.v.value.shape == (4, 5)


def test_map_tags():
    made = population(state_tag="member")
    assert made.states("member").keys() == {("module", k) for k in "tvw"}


def test_copies_of_maps():
    made = population()
    x = jnp.ones((4, 3))
    made(x)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert len(other._kept) == 0
        other(x)
        assert (other.module.v.value == 2).all() and (made.module.v.value == 1).all()


def test_map_over_devices():
    made = population(n=8, behavior="pmap", axis_name="members")
    x = jnp.ones((8, 3))
    np.testing.assert_array_equal(made(x), jnp.full(8, 4.0))
    np.testing.assert_array_equal(made.map("predict")(x), jnp.full(8, 3.0))
    np.testing.assert_array_equal(made.map("centred")(jnp.arange(8.0)), jnp.arange(8.0) - 3.5)


def test_maps_of_maps():
    outer = nn.Map(nn.Map(Cell(), init_map_size=3), init_map_size=2)
    outer.init_all_states(size=4)
    cell = outer.module.module
    assert cell.v.value.shape == (2, 3, 4)
    np.testing.assert_array_equal(outer(jnp.ones((2, 3, 4))), jnp.full((2, 3), 5.0))
    assert cell.v.value.shape == (2, 3, 4) and (cell.v.value == 1).all()


def test_map_prints():
    made = nn.Map(Cell(), init_map_size=4, axis_name="members")
    text = repr(made)
    assert text.startswith("Map(\n  init_map_size=4,\n  module=Cell(")
    assert "_kept" not in text and "axis_name='members'" in text
    made.init_all_states()
    assert repr(made.map("predict", in_axes=(0,))) == (
        "MapCaller(predict, in_axes=(0,), out_axes=0, axis_name='members', behavior='vmap')"
    )
    assert repr(made.map(lambda module, x: x)).startswith("MapCaller(<lambda>, ")


def test_the_examples_of_the_document():
    class Process(nn.Module):
        def init_state(self, size):
            self.params = ParamState(jnp.ones(size))
            self.buffer = State(jnp.zeros(size))

        def update(self, x):
            self.buffer.value = x
            return x @ self.params.value

        def process(self, x, y):
            return x + y, x * y

    made = nn.Map(Process(), init_map_size=10)
    made.init_all_states(size=(5,))
    x, y = jnp.ones((10, 5)), jnp.full(5, 2.0)
    both = made.map("process", in_axes=(0, None), out_axes=(0, 0))(x, y)
    assert [a.shape for a in both] == [(10, 5), (10, 5)]
    out = made.map("update", state_axes={0: OfType(ParamState)})(x)
    np.testing.assert_array_equal(out, jnp.full(10, 5.0))
    assert made.module.buffer.value.shape == (10, 5)
    scaled = made.map(lambda m, x, scale: m.update(x) * scale)(x, scale=2 * jnp.ones(10))
    np.testing.assert_array_equal(scaled, jnp.full(10, 10.0))


def test_map_under_other_transforms():
    made, plain = population(), population()
    x = jnp.ones((4, 3))
    jitted = transform.jit(made)
    for _ in range(2):
        np.testing.assert_array_equal(jitted(x), plain(x))
    xs = jnp.arange(36.0).reshape(3, 4, 3)
    out = transform.for_loop(made.update, xs)
    np.testing.assert_array_equal(out, jnp.stack([plain(x) for x in xs]))
    np.testing.assert_array_equal(made.module.v.value, plain.module.v.value)
    made.init_all_states(size=2)
    assert jitted(jnp.ones((4, 2))).shape == (4,)


def test_members_draw_numbers_of_their_own():
    class Noisy(nn.Module):
        def init_state(self):
            self.w = ParamState(random.normal(size=3))

        def update(self):
            return self.w.value + random.normal(size=3)

    random.seed(0)
    made = nn.Map(Noisy(), init_map_size=4)
    made.init_all_states()
    first, second = made(), made()
    for numbers in (made.module.w.value, first, second, second - first):
        assert len(np.unique(numbers)) == 12


def test_an_exception_leaves_all_as_it_was():
    class Broken(Cell):
        def update(self, x):
            self.v.value = self.v.value + x
            raise RuntimeError("in the middle")

        def init_state(self, size=3):
            super().init_state(size)
            if size == 5:
                raise RuntimeError("while it is made")

    made = nn.Map(Broken(), init_map_size=4)
    made.init_all_states()
    cells, by_axis = dict(made.states()), made.dict_vmap_states
    with pytest.raises(RuntimeError, match="in the middle"):
        made(jnp.ones((4, 3)))
    assert (made.module.v.value == 0).all()
    with pytest.raises(RuntimeError, match="while it is made"):
        made.init_all_states(size=5)
    assert made.states() == cells and made.dict_vmap_states is by_axis
    np.testing.assert_array_equal(made.map("predict")(jnp.ones((4, 3))), jnp.full(4, 3.0))


def test_mistakes_in_map():
    with pytest.raises(TypeError, match="`module` is a module, not the class `Cell`"):
        nn.Map(Cell, init_map_size=3)
    with pytest.raises(TypeError, match="`module` is a module, not a value of type `function`"):
        nn.Map(lambda: None, init_map_size=3)
    for size in (2.0, None, True):
        with pytest.raises(TypeError, match=f"a number of members, is an int: {size}"):
            nn.Map(Cell(), init_map_size=size)
    with pytest.raises(ValueError, match="`init_map_size` is at least 1, not 0"):
        nn.Map(Cell(), init_map_size=0)
    with pytest.raises(ValueError, match="`behavior` is 'vmap' or 'pmap', not 'scan'"):
        nn.Map(Cell(), init_map_size=3, behavior="scan")
    made = nn.Map(Cell(), init_map_size=np.int64(3))
    assert made.init_map_size == 3 and made.dict_vmap_states is None
    for call in (lambda: made(1), lambda: made.map("predict")):
        with pytest.raises(ValueError, match=r"`Map\.\w+` comes after `init_all_states`"):
            call()
    with pytest.raises(AttributeError, match=r"`Cell` has no method `predikt`. .*`predict`"):
        made.map("predikt")
    with pytest.raises(TypeError, match="`bias` of Cell is no method"):
        made.map("bias")
    with pytest.raises(
        TypeError, match=r"the name of a method or a function, not 3|parameter 'fn'"
    ):
        made.map(3)


def test_vmap():
    dot = Dot()
    # `v` is written in each lane, and comes back with the lanes on axis 0
    mapped = nn.Vmap(dot, vmap_states="trace", vmap_out_states="trace", axis_size=4)
    dot.v.value = jnp.zeros(4)
    x = jnp.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(mapped(x), x @ dot.w.value)
    np.testing.assert_array_equal(dot.v.value, x @ dot.w.value)
    assert list(mapped.states()) == [("module", "v"), ("module", "w")]
    other = copy.deepcopy(mapped)
    other(2 * x)
    np.testing.assert_array_equal(dot.v.value, x @ dot.w.value)
    np.testing.assert_array_equal(other.module.v.value, 2 * x @ dot.w.value)
    with pytest.raises(BatchAxisError, match="shared by all lanes"):
        nn.Vmap(Dot())(x)


@pytest.mark.parametrize(
    "spec",
    [
        {0: PathContains("v"), 1: ParamState},
        {PathContains("v"): 0, OfType(ParamState): 1},
        {0: [PathContains("v")], 1: ParamState, None: ...},
    ],
)
def test_vmap_states_by_axis(spec):
    dot = Dot()
    mapped = nn.Vmap(dot, vmap_states=spec, in_axes=None)
    dot.w.value, dot.v.value = jnp.arange(12.0).reshape(3, 4), jnp.zeros(4)
    np.testing.assert_array_equal(mapped(jnp.ones(3)), jnp.arange(12.0).reshape(3, 4).sum(0))
    assert dot.w.value.shape == (3, 4) and dot.v.value.shape == (4,)


def test_vmap_of_cells_made_later():
    cell = Cell()
    mapped = nn.Vmap(cell, vmap_states={0: PathContains("v")})
    cell.init_state()
    cell.v.value = jnp.zeros((4, 3))
    x = jnp.ones((4, 3))
    np.testing.assert_array_equal(mapped(x), jnp.full(4, 4.0))
    cell.init_state()
    cell.v.value = jnp.zeros((4, 3))
    np.testing.assert_array_equal(mapped(x), jnp.full(4, 4.0))


def test_vmap_takes_a_module():
    with pytest.raises(TypeError, match="`module` is a module, not a value of type `function`"):
        nn.Vmap(lambda x: x)


def test_call_axes_that_contradict_those_of_init():
    made = nn.Map(
        Cell(), 4, init_state_axes={1: ParamState}, call_state_axes={0: PathContains("w")}
    )
    made.init_all_states(size=3)
    x = jnp.ones((4, 3))
    said = (
        "`w` was made with members on axis 1, and `call_state_axes` takes them on axis 0, "
        r"where its value of shape \(3, 4\) does not have 4"
    )
    for call in (made, made.map("predict")):
        with pytest.raises(BatchAxisError, match=said):
            call(x)
    assert (made.module.v.value == 0).all()
    made.module.w.value = made.module.w.value.T
    np.testing.assert_array_equal(made(x), jnp.full(4, 4.0))
    other = population().map("tick", in_axes=None, out_axes=None, state_axes={0: NonBatchState})
    with pytest.raises(BatchAxisError, match="made without members, and `state_axes` takes them"):
        other()


def test_maps_of_any_class_of_modules():
    class Outside:
        """A module of a library of its own, with the methods that a `Map` needs."""

        graph_invisible_attrs = ()

        def __init__(self):
            self.ready = True

        def init_state(self, size=3):
            self.v = ShortTermState(jnp.zeros(size))

        def init_all_states(self, **kwargs):
            self.init_state(**kwargs)

        def nodes(self, *filters, **kwargs):
            return nodes(self, *filters, **kwargs)

        def states(self, *filters, **kwargs):
            return states(self, *filters, **kwargs)

        def __call__(self, *args):
            return self.update(*args)

        def update(self, x):
            self.v.value = self.v.value + x
            return self.v.value

    class OutsideMap(MapBehaviour, Outside):
        pass

    class OutsideVmap(VmapBehaviour, Outside):
        pass

    made = OutsideMap(Outside(), 4)
    made.init_all_states(size=2)
    x = jnp.ones((4, 2))
    assert made.ready and made(x).tolist() == x.tolist()
    assert made.map("update")(x).tolist() == (2 * x).tolist() and len(made.states()) == 1
    with pytest.raises(TypeError, match="`module` is a module, not the class `Outside`"):
        OutsideMap(Outside, 4)
    one = Outside()
    one.v = ShortTermState(jnp.zeros((4, 2)))
    mapped = OutsideVmap(one, vmap_states=..., vmap_out_states=...)
    assert mapped(x).tolist() == x.tolist() == one.v.value.tolist()
    for target in (Outside(), [Outside(), {"a": (Outside(),)}]):
        assert nn.init_all_states(target, 5) is target
        assert all(cell.value.shape == (5,) for cell in states(target).values())
        nn.vmap_init_all_states(target, axis_size=2)
        assert {cell.value.shape for cell in states(target).values()} == {(2, 3)}
    with pytest.raises(AttributeError, match="The Outside has no method `absent`"):
        nn.call_all_fns(Outside(), "absent")
