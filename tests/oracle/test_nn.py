"""The shim's modules against brainstate's: the same programs, given both."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from statemap import compat
from statemap.compat import environ, nn, transform, util
from statemap.compat.nn._map import MapBehaviour
from statemap.compat.nn._vmap import VmapBehaviour

from .peer import brainstate


SHIM = types.SimpleNamespace(
    **{name: getattr(compat, name) for name in (
        "State", "ShortTermState", "LongTermState", "HiddenState", "ParamState", "NonBatchState"
    )},
    nn=nn, util=util, environ=environ, transform=transform, random=compat.random,
)  # fmt: skip


def both(program):
    """What a program gives with each library: equal, to the bit where it is numbers."""
    with jax.numpy_dtype_promotion("standard"):
        expected, got = program(brainstate), program(SHIM)
    assert jax.tree.structure(expected) == jax.tree.structure(got)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got)):
        if isinstance(a, (jax.Array, np.ndarray)):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
        else:
            assert a == b
    return got


def net(lib):
    """A module with every way to hold another, cells that are shared, and hooks."""

    class Leaf(lib.nn.Module):
        def __init__(self, n):
            super().__init__()
            self.n = n
            self.w = lib.ParamState(jnp.arange(1.0, n + 1), tag="slow")
            self.v = lib.HiddenState(jnp.zeros(n), tag={"fast", "slow"})

        def init_state(self, fill=0.0):
            self.s = lib.ShortTermState(jnp.full(self.n, fill))

        def reset_state(self, fill=0.0):
            self.s.value = jnp.full(self.n, fill) + self.w.value

        def update(self, x):
            self.v.value = self.v.value + x * self.w.value
            return self.v.value.sum()

    class Ordered(Leaf):
        @lib.nn.call_order(1)
        def init_state(self, fill=0.0):
            self.s = lib.ShortTermState(self.other.s.value + fill)

    class Net(lib.nn.Module):
        def __init__(self):
            super().__init__(name="net")
            self.layers = [Leaf(1), (Leaf(2), {"z": Leaf(3), "a": lib.State(jnp.zeros(2))})]
            self.first = Ordered(1)
            self.first.other = self.layers[0]
            self.twice = self.layers[0].w
            self.beta = lib.LongTermState(jnp.ones(()))
            self.config = {"rate": 0.5}
            self.ten = 10
            self.nothing = None

    return Net()


def paths(found):
    if isinstance(found, tuple):
        return [list(each) for each in found]
    return list(found)


FILTERS = {
    "type": lambda lib: [lib.ParamState],
    "subclasses": lambda lib: [lib.ShortTermState],
    "tag": lambda lib: ["fast"],
    "one of several tags": lambda lib: [lib.util.filter.WithTag("slow")],
    "path": lambda lib: [lib.util.filter.PathContains("layers")],
    "index": lambda lib: [lib.util.filter.PathContains(1)],
    "any": lambda lib: [lib.util.filter.Any(lib.ParamState, "fast")],
    "all": lambda lib: [lib.util.filter.All(lib.State, lib.util.filter.Not("slow"))],
    "list": lambda lib: [["fast", lib.LongTermState]],
    "tuple": lambda lib: [("fast", False, None)],
    "empty": lambda lib: [()],
    "bools": lambda lib: [False, True],
    "several": lambda lib: [lib.HiddenState, "slow", ...],
    "function": lambda lib: [lambda path, x: len(path) > 2 and x.tag is not None],
    "nothing": lambda lib: [None],
    "mixed": lambda lib: [lib.util.filter.Nothing(), lib.util.filter.Everything()],
}


@pytest.mark.parametrize("filters", FILTERS.values(), ids=list(FILTERS))
def test_states_by_filters(filters):
    def program(lib):
        return paths(net(lib).states(*filters(lib)))

    both(program)


@pytest.mark.parametrize("filters", FILTERS.values(), ids=list(FILTERS))
def test_filters_of_flat_dictionaries(filters):
    def program(lib):
        states = net(lib).states()
        split = states.split(*filters(lib), ...)
        return paths(states.filter(*filters(lib))), paths(split)

    both(program)


@pytest.mark.parametrize("levels", [(0, 0), (0, 1), (1, 1), (1, 3), (2, 9)])
def test_states_and_nodes_by_level(levels):
    def program(lib):
        model = net(lib)
        lib.nn.init_all_states(model)
        by_level = dict(allowed_hierarchy=levels)
        return paths(model.states(**by_level)), paths(model.nodes(**by_level))

    both(program)


def test_what_modules_list():
    def program(lib):
        model = net(lib)
        return {
            "states": paths(model.states()),
            "nodes": paths(model.nodes()),
            "split nodes": paths(model.nodes(lib.util.filter.PathContains("layers"), ...)),
            "children": [name for name, _ in model.named_children()],
            "modules": [name for name, _ in model.named_modules("m")],
            "others": [name for name, _ in model.named_modules(include_self=False)],
            "parameters": [name for name, _ in model.named_parameters("p")],
            "classes": [type(m).__name__ for m in model.modules()],
            "names": (model.name, model.in_size, model.out_size),
        }

    both(program)


def test_flat_dictionaries():
    def program(lib):
        states = net(lib).states()
        params, rest = states.split(lib.ParamState, ...)
        nest = rest.to_nest()
        assert type(nest).__name__ == "NestedDict" and nest.to_flat() == rest
        assert paths(lib.util.FlattedDict.from_nest(nest)) == paths(rest)
        assert nest.filter(lib.ParamState) == {} and nest.beta is states[("beta",)]
        joined = params | rest
        values = states.to_dict_values()
        states.assign_dict_values({k: v + 1 for k, v in values.items()})
        names = [type(s).__name__ for s in jax.tree.leaves(states)]
        return paths(joined), paths(joined - params), values, sorted(nest), names, [
            s.value for s in states.values()
        ]  # fmt: skip

    both(program)


def test_init_and_reset():
    def program(lib):
        model = net(lib)
        made = model.init_all_states(2.0, state_tag="made")
        order = [list(model.states()).index(p) for p in model.states("made")]
        before = [s.value for s in made]
        lib.nn.reset_all_states(model, 3.0)
        after = {".".join(map(str, k)): s.value for k, s in model.states().items()}
        tags = [sorted(s.tag) for s in made.get_by_tag("made")]
        return len(made), order, before, after, tags

    both(program)


def test_calls_of_all_modules():
    def program(lib):
        model = net(lib)
        lib.nn.init_all_states(model, 1.0, node_to_exclude=lib.util.filter.PathContains("z"))
        partly = paths(model.states())
        lib.nn.call_all_fns(model, "init_state", 1.0)
        lib.nn.call_all_fns(model, "absent", fn_if_not_exist="pass")
        with pytest.raises(AttributeError, match="absent"):
            lib.nn.call_all_fns(model, "absent")
        return partly, paths(model.states())

    both(program)


def test_values_by_path():
    def program(lib):
        model = net(lib)
        unexpected, missing = lib.nn.assign_state_values(
            model, {"beta": 2.0, ("layers", 0, "v"): np.ones(1, np.float32)}, {"no": 1, ("q", 1): 2}
        )
        return unexpected, missing, [s.value for s in model.states().values()]

    both(program)


def test_sequential():
    def program(lib):
        class Scale(lib.nn.Module):
            def __init__(self, by, in_size, out_size):
                super().__init__()
                self.by = lib.ParamState(jnp.asarray(by))
                self.in_size, self.out_size = in_size, out_size

            def update(self, x):
                return x * self.by.value

        class Plus(lib.nn.ElementWiseBlock):
            def update(self, x):
                return x + 1.0

        seq = lib.nn.Sequential(Scale(2.0, 3, 4), Plus(), jnp.negative, Scale(3.0, (4,), [5, 6]))
        sizes = [seq.in_size, seq.out_size, seq[:3].out_size, seq[(0, 1)].in_size]
        seq.append(Scale(1.0, 5, 7))
        sizes += [seq.out_size]
        seq.extend([Plus(), jnp.negative])
        seq.insert(0, Scale(5.0, 9, 3))
        sizes += [seq.in_size, seq.out_size]
        x = jnp.arange(3.0)
        return sizes, paths(seq.states()), seq(x), x >> seq, seq[:2](x), type(seq[-1]).__name__

    both(program)


def test_settings():
    def program(lib):
        class Step(lib.nn.Module):
            def update(self, x):
                return x + lib.environ.get_dt() * lib.environ.get("gain", 1.0)

        step = lib.nn.EnvironContext(Step(), dt=0.5)
        out = [step(1.0), step(1.0, context={"gain": 3.0})]
        lib.environ.set(dt=0.25, note="a")
        with lib.environ.context(t=2.0, precision=16) as settings:
            kinds = [np.dtype(f()).name for f in (
                lib.environ.dftype, lib.environ.ditype, lib.environ.dutype, lib.environ.dctype
            )]  # fmt: skip
            out += [Step()(1.0), dict(settings), kinds, lib.environ.tolerance()]
        for key in ("dt", "note"):
            out.append(lib.environ.pop(key))
        for missing in (lib.environ.get_dt, lambda: lib.environ.get("t")):
            with pytest.raises(KeyError, match="not"):
                missing()
        return out, lib.environ.all(), lib.environ.get("t", None), lib.environ.get_platform()

    both(program)


def population(lib, **kwargs):
    class Cell(lib.nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = lib.ParamState(jnp.asarray(0.5))

        def init_state(self, size=3):
            self.w = lib.ParamState(jnp.arange(1.0, size + 1))
            self.v = lib.ShortTermState(jnp.zeros(size))

        def update(self, x, gain=1.0):
            self.v.value = 0.5 * self.v.value + gain * x
            return self.v.value @ self.w.value + self.bias.value

        def predict(self, x, y):
            return x @ self.w.value, y + self.v.value

    made = lib.nn.Map(Cell(), **{"init_map_size": 4, **kwargs})
    made.init_all_states(size=3)
    return made


@pytest.mark.parametrize("behavior", ["vmap", "pmap"])
def test_map(behavior):
    n = jax.device_count()

    def program(lib):
        made = population(lib, behavior=behavior, init_map_size=n)
        x = jnp.arange(3.0 * n).reshape(n, 3)
        out = [made(x), made.update(x), made.module.v.value]
        out.append(made.map("predict", in_axes=(0, None), out_axes=(0, 1))(x, jnp.ones(3)))
        by_axis = {axis: len(cells) for axis, cells in made.dict_vmap_states.items()}
        return out, by_axis, [s.value for s in made.module.states().values()]

    both(program)


def test_map_with_other_axes():
    def program(lib):
        made = population(
            lib, init_state_axes={1: lib.ParamState}, in_axes=1, out_axes=0, state_tag="member"
        )
        out = made(jnp.arange(12.0).reshape(3, 4))
        tags = [sorted(s.tag or ()) for s in made.module.states().values()]
        return out, tags, [s.value for s in made.module.states().values()]

    both(program)


def test_members_made_with_random_numbers():
    def program(lib):
        class Cell(lib.nn.Module):
            def init_state(self, size):
                self.w = lib.ParamState(lib.random.normal(size=size))
                self.v = lib.ShortTermState(lib.random.uniform(size=(2,)))

            def update(self, x):
                return x @ self.w.value + self.v.value.sum()

        lib.random.seed(7)
        made = lib.nn.Map(Cell(), init_map_size=4)
        made.init_all_states(size=(3,))
        return [s.value for s in made.module.states().values()], made(jnp.ones((4, 3)))

    both(program)


def test_mistakes_in_map():
    def program(lib):
        made = lib.nn.Map(net(lib), init_map_size=3)
        with pytest.raises(ValueError, match="init_all_states"):
            made(jnp.ones(3))
        with pytest.raises(ValueError, match="init_all_states"):
            made.map("update")
        with pytest.raises(AttributeError, match="no method"):
            made.map("nope")
        return made.dict_vmap_states

    both(program)


@pytest.mark.parametrize(
    "axes", [lambda lib: lib.HiddenState, lambda lib: {"fast": 0, lib.LongTermState: 1}]
)
def test_vmap(axes):
    def program(lib):
        model = net(lib).layers[1][0]
        spec = axes(lib)
        model.v.value = jnp.zeros((5, 2))
        if isinstance(spec, dict):
            model.w.value = jnp.arange(10.0).reshape(2, 5)
        mapped = lib.nn.Vmap(model, vmap_states=spec, vmap_out_states=spec)
        x = jnp.arange(10.0).reshape(5, 2)
        out = mapped(x), mapped(x)
        return out, [s.value for s in model.states().values()]

    both(program)


def test_vmap_of_init():
    def program(lib):
        model = net(lib)
        lib.nn.vmap_init_all_states(model, 2.0, axis_size=4, state_tag="made")
        shapes = {".".join(map(str, k)): s.value.shape for k, s in model.states("made").items()}
        return shapes, [s.value for s in model.states().values()]

    both(program)


def test_collectives_and_mappings_over_brainstates_modules():
    class Leaf(brainstate.nn.Module):
        def init_state(self, log):
            log.append(self)

    class Last(Leaf):
        @brainstate.nn.call_order(1)
        def init_state(self, log):
            super().init_state(log)

    class Net(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = Last(), [Leaf(), {"c": Leaf()}]
            self.node = brainstate.graph.Node()  # no module

    class Map(MapBehaviour, brainstate.nn.Module):
        pass

    class Vmap(VmapBehaviour, brainstate.nn.Module):
        pass

    model, logs = Net(), ([], [])
    brainstate.nn.call_all_fns(model, "init_state", (logs[0],), node_to_exclude=Net)
    assert nn.call_all_fns(model, "init_state", (logs[1],), node_to_exclude=Net) is model
    assert logs[0] == logs[1] == [*model.b[:1], model.b[1]["c"], model.a]
    assert nn.init_all_states([Leaf(), (model.a,)], logs[0])[1] == (logs[0][-1],)
    mapped = Map(model, 3, call_state_axes={0: brainstate.ParamState})
    assert mapped.name is None and paths(mapped.nodes())[-2:] == [("module",), ()]
    assert paths(Vmap(model, vmap_states="a").nodes())[-2:] == [("module",), ()]
