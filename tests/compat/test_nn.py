"""The shim's modules."""

import copy
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from statemap.compat import environ, nn, ParamState, ShortTermState, State
from statemap.compat.util.filter import Not, OfType, PathContains


class Dot(nn.Module):
    def __init__(self, n=3):
        super().__init__()
        self.in_size = n
        self.out_size = ()
        self.w = ParamState(jnp.arange(1.0, n + 1))
        self.v = ShortTermState(jnp.zeros(()), tag="trace")

    def update(self, x):
        self.v.value = x @ self.w.value
        return self.v.value

    def reset_state(self):
        self.v.value = jnp.zeros(())


class Pair(NamedTuple):
    left: Dot
    right: State


class Net(nn.Module):
    def __init__(self):
        super().__init__(name="net")
        self.layers = [Dot(), Dot()]
        self.table = {"b": Dot(), "a": (State(jnp.zeros(2)), 3.0)}
        self.pair = Pair(Dot(), State(jnp.zeros(())))
        self.again = self.layers[0].w
        self.count = State(jnp.zeros((), int))
        self.config = {"rate": 0.5, 3: "mixed keys"}
        self.array = jnp.ones(2)
        self.fn = jnp.tanh


STATES = [
    ("again",), ("count",), ("layers", 0, "v"), ("layers", 1, "v"), ("layers", 1, "w"),
    ("pair", "left", "v"), ("pair", "left", "w"), ("pair", "right"),
    ("table", "a", 0), ("table", "b", "v"), ("table", "b", "w"),
]  # fmt: skip
NODES = [("layers", 0), ("layers", 1), ("pair", "left"), ("table", "b"), ()]


def test_states_are_listed_once_in_order():
    net = Net()
    states = net.states()
    assert list(states) == STATES
    assert states[("again",)] is net.layers[0].w and states[("table", "b", "v")] is net.table["b"].v


def test_states_by_filters():
    net = Net()
    params = net.states(ParamState)
    assert list(params) == [path for path in STATES if path[-1] in ("w", "again")]
    inner, traces = net.states(PathContains("table"), "trace")
    assert list(inner) == [path for path in STATES if path[0] == "table"]
    assert list(traces) == [("layers", 0, "v"), ("layers", 1, "v"), ("pair", "left", "v")]
    assert list(net.states(net.count)) == [("count",)]
    assert list(net.states(Not(ShortTermState), allowed_hierarchy=(0, 0))) == [
        ("again",), ("count",), ("pair", "right"), ("table", "a", 0)
    ]  # fmt: skip


def test_states_by_level():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = [Net()]
            self.own = State(jnp.zeros(()))

    outer = Outer()
    paths = list(outer.states())
    own, once, twice, none = (list(outer.states(allowed_hierarchy=(n, n))) for n in range(4))
    assert own == [("own",)] and none == []
    assert once == [("inner", 0, *path) for path in STATES if path[-1] not in ("v", "w")]
    # the shared cell is at both levels, and listed once where both are allowed
    assert set(own + once + twice) - set(paths) == {("inner", 0, "layers", 0, "w")}
    assert len(own + once + twice) == len(paths) + 1
    assert list(outer.states(allowed_hierarchy=(0, 1))) == once + own


def test_nodes_are_innermost_first():
    net = Net()
    nodes = net.nodes()
    assert list(nodes) == NODES and nodes[()] is net
    assert list(net.nodes(Dot)) == NODES[:-1]
    assert list(net.nodes(allowed_hierarchy=(0, 0))) == [()]
    first, rest = net.nodes(PathContains("layers"), ...)
    assert list(first) == NODES[:2] and list(rest) == NODES[2:]


def test_modules_and_parameters_by_name():
    net = Net()
    names = ["layers.0", "layers.1", "pair.left", "table.b"]
    assert [name for name, _ in net.named_children()] == names
    assert list(net.children()) == list(net.modules(include_self=False))
    assert [name for name, _ in net.named_modules()] == [*names, ""]
    assert [name for name, _ in net.named_modules("net")][-2:] == ["net.table.b", "net"]
    assert list(net.modules())[-1] is net
    parameters = dict(net.named_parameters(prefix="p"))
    assert list(parameters) == ["p.again", "p.layers.1.w", "p.pair.left.w", "p.table.b.w"]
    assert list(net.parameters()) == list(parameters.values())
    assert list(net.parameters(recurse=False)) == [net.again]


def test_modules_in_circles():
    class Child(nn.Module):
        def __init__(self, parent):
            super().__init__()
            self.parent = parent
            self.v = State(jnp.zeros(()))

    net = Net()
    net.child = Child(net)
    assert list(net.nodes())[0] == ("child",) and ("child", "v") in net.states()
    assert "parent=..." in repr(net)


def test_hidden_attributes_are_not_looked_at():
    class Shy(nn.Module):
        graph_invisible_attrs = ("hidden",)

        def __init__(self):
            super().__init__()
            self.hidden, self.shown = Dot(), Dot()

    assert list(Shy().nodes()) == [("shown",), ()] and "hidden" not in repr(Shy())


def test_calls():
    dot = Dot()
    x = jnp.ones(3)
    assert dot(x) == dot.update(x) == (x >> dot) == 6
    with pytest.raises(NotImplementedError, match="`Module` has no method `update`"):
        nn.Module()(1)


def test_attributes():
    assert Net().name == "net" and Dot().name is None
    assert Dot().in_size == (3,) and Dot().out_size == ()
    module = nn.Module()
    module.in_size = np.int64(4)
    module.out_size = [2, np.int32(3)]
    assert module.in_size == (4,) and module.out_size == (2, 3)
    module.in_size = None
    assert module.in_size is None
    with pytest.raises(TypeError, match=r"`out_size` is an int or a tuple of ints, not 1\.5"):
        module.out_size = 1.5
    with pytest.raises(TypeError, match="The name of a module is a string, not 3"):
        nn.Module(name=3)
    with pytest.raises(AttributeError, match="name"):
        module.name = "other"


def test_a_subclass_need_not_call_the_constructor():
    class Bare(nn.Module):
        def __init__(self):
            self.v = State(jnp.zeros(()))

    assert Bare().name is None and list(Bare().states()) == [("v",)]


def test_modules_print():
    assert repr(nn.Module()) == "Module()"
    lines = repr(Dot()).splitlines()
    assert lines[0] == "Dot(" and lines[1] == "  in_size=(3,)," and lines[-1] == ")"
    assert "  w=ParamState(value=f32[3])," in lines


def test_copies_have_cells_of_their_own():
    net = Net()
    other = copy.deepcopy(net)
    assert list(other.states()) == STATES and other.again is other.layers[0].w
    other.count.value = other.count.value + 1
    assert net.count.value == 0


class Made(nn.Module):
    def __init__(self, log=None):
        super().__init__()
        self.log = [] if log is None else log

    def init_state(self, size=2, *, fill=0.0):
        self.log.append("init " + type(self).__name__)
        self.v = ShortTermState(jnp.full(size, fill))

    def reset_state(self, fill=0.0):
        self.log.append("reset " + type(self).__name__)
        self.v.value = jnp.full_like(self.v.value, fill)


class Last(Made):
    @nn.call_order(2)
    def init_state(self, *args, **kwargs):
        super().init_state(*args, **kwargs)


class Second(Made):
    @nn.call_order(1)
    def init_state(self, *args, **kwargs):
        super().init_state(*args, **kwargs)


class Tree(Made):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = Last(self.log), Second(self.log), Made(self.log)


def test_init_all_states():
    tree = Tree()
    made = tree.init_all_states(3, fill=1.0, state_tag="made")
    assert tree.log == ["init Made", "init Tree", "init Second", "init Last"]
    assert list(tree.states()) == [("a", "v"), ("b", "v"), ("c", "v"), ("v",)]
    assert len(made) == 4 and set(made) == set(tree.states().values())
    assert all(cell.tag == {"made"} and cell.value.shape == (3,) for cell in made)
    assert made.get_states() == list(made) == made.get_by_tag("made")
    assert len(Dot().init_all_states()) == 0


def test_init_and_reset_all_states_as_functions():
    tree = Tree()
    assert nn.init_all_states(tree, 3, fill=1.0, node_to_exclude=OfType(Last)) is tree
    assert list(tree.states()) == [("b", "v"), ("c", "v"), ("v",)]
    tree.log.clear()
    with pytest.raises(AttributeError, match="'Last' object has no attribute 'v'"):
        nn.reset_all_states(tree, fill=2.0)
    assert nn.reset_all_states(tree, 2.0, node_to_exclude=Last) is tree
    assert all((cell.value == 2).all() for cell in tree.states().values())
    both = [Made(), {"x": Made()}]
    nn.init_all_states(both)
    assert both[0].v.value.shape == both[1]["x"].v.value.shape == (2,)


def test_call_all_fns():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Made()
            self.by = 1.0

        def scale(self, by):
            self.by = by

    model = Scaled()
    with pytest.raises(AttributeError, match="The Made at `inner` has no method `scale`"):
        nn.call_all_fns(model, "scale", 2.0)
    assert nn.call_all_fns(model, "scale", 2.0, fn_if_not_exist="pass").by == 2.0
    with pytest.warns(UserWarning, match="The Made at `inner` has no method `scale`"):
        nn.call_all_fns(model, "scale", (), {"by": 3.0}, fn_if_not_exist="warn")
    assert model.by == 3.0
    with pytest.raises(ValueError, match="`fn_if_not_exist` is 'raise', .*, not 'skip'"):
        nn.call_all_fns(model, "scale", 2.0, fn_if_not_exist="skip")
    with pytest.raises(TypeError, match=r"`by` of a Scaled is no method: 3\.0"):
        nn.call_all_fns(model, "by", node_to_exclude=Made)
    with pytest.raises(ValueError, match="`level` is an int from 0 to 9, not 10"):
        nn.call_order(10)
    assert nn.call_order(10, check_order_boundary=False)(lambda: None).call_order == 10


def test_vmap_init_and_reset_all_states():
    class Remade(Made):
        def reset_state(self, fill=0.0):
            self.v = ShortTermState(jnp.full(3, fill))

    model = Remade()
    assert nn.vmap_init_all_states(model, 4, fill=1.0, axis_size=5, state_tag="made") is model
    assert model.v.value.shape == (5, 4) and model.v.tag == {"made"}
    assert nn.vmap_reset_all_states(model, 2.0, axis_size=6) is model
    assert model.v.value.shape == (6, 3) and (model.v.value == 2).all()
    nn.vmap_call_all_fns(model, "init_state", (), {"size": 7}, axis_size=2)
    assert model.v.value.shape == (2, 7)
    for size in (None, 0):
        with pytest.raises(ValueError, match=f"`axis_size`.* is a positive int, not {size}"):
            nn.vmap_init_all_states(model, axis_size=size)


def test_assign_state_values():
    net = Net()
    values = {("layers", 1, "w"): np.ones(3, np.float32), "pair.left.w": [1.0, 2.0, 3.0]}
    unexpected, missing = nn.assign_state_values(net, {"extra": 0}, {**values, "pair.left.w": 1.0})
    assert unexpected == ["extra"] and len(missing) == len(STATES) - 2
    assert (net.layers[1].w.value == 1).all() and isinstance(net.layers[1].w.value, jax.Array)
    before = net.layers[1].w.value
    with pytest.raises(TypeError, match="not a valid JAX array type"):
        nn.assign_state_values(net, {"layers.1.w": jnp.zeros(3), "count": "text"})
    assert net.layers[1].w.value is before


class Scale(nn.Module):
    def __init__(self, by, in_size=None, out_size=None):
        super().__init__()
        self.by = State(jnp.asarray(by))
        self.in_size, self.out_size = in_size, out_size

    def update(self, x):
        return x * self.by.value


class Plus(nn.ElementWiseBlock):
    def update(self, x):
        return x + 1


def test_sequential():
    net = nn.Sequential(Scale(2.0, 3, 4), Plus(), jnp.negative, Scale(3.0, 4, 5))
    assert net(jnp.asarray(1.0)) == -9.0
    assert net.in_size == (3,) and net.out_size == (5,) and len(net) == 4
    assert list(net.states()) == [("layers", 0, "by"), ("layers", 3, "by")]
    assert net[0].by.value == 2 and [type(m) for m in net][1] is Plus
    assert net[:2].out_size == (4,) and net[:2](jnp.asarray(1.0)) == 3.0
    assert net[(0, 3)](jnp.asarray(1.0)) == 6.0
    assert len(net[:0]) == 0 and net[:0](5) == 5
    net.append(Scale(1.0, 5, 6))
    assert net.out_size == (6,)
    net.extend([jnp.tanh, Plus()])
    assert net.out_size == (6,) and len(net) == 7
    net.insert(0, Scale(1.0, 2, 3))
    assert net.in_size == (2,) and net.layers[1].by.value == 2


def test_mistakes_in_sequential():
    with pytest.raises(TypeError, match="begins with a module, not a value of type"):
        nn.Sequential(jnp.tanh)
    with pytest.raises(TypeError, match="not the class `Plus`; it takes an instance"):
        nn.Sequential(Plus)
    with pytest.raises(
        TypeError, match="A layer is a module or a function, not a value of type `float`"
    ):
        nn.Sequential(Plus(), 3.0)
    with pytest.raises(TypeError, match="dot_general|matmul|shape") as failed:
        nn.Sequential(Plus(), Dot())(jnp.ones(4))
    assert failed.value.__notes__[-1] == "This is layer 1 of a Sequential, `Dot`."


def test_environ_context():
    class Step(nn.Module):
        def update(self, x):
            return x + environ.get_dt() * environ.get("gain", 1.0)

    step = nn.EnvironContext(Step(), dt=0.5)
    assert step(1.0) == 1.5 and step(1.0, context={"dt": 2.0}) == 3.0
    step.add_context(gain=2.0)
    assert step(1.0) == 2.0 and environ.get("dt", None) is None
    assert list(step.nodes()) == [("layer",), ()]
    with pytest.raises(TypeError, match="`layer` is a module, not a value of type `float`"):
        nn.EnvironContext(1.0)


def test_what_is_not_there():
    with pytest.raises(AttributeError, match=r"has no `Linear`.*`equinox\.nn`"):
        nn.Linear
    assert not hasattr(nn, "relu")
