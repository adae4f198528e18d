"""Objects of other libraries that change in place: never read stale, never silently lost."""

import dataclasses
import functools
import gc
import sys
import warnings
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import statemap as sm


class Nnx:
    """The same few things of each library."""

    name = "nnx"

    def __init__(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own
            nnx = self.lib = pytest.importorskip("flax.nnx")

        class Inner(nnx.Module):
            def __init__(self):
                self.scale = nnx.Param(jnp.ones(3))
                self.factor = 1.0

        class Net(nnx.Module):
            def __init__(self):
                self.mean = nnx.BatchStat(jnp.zeros(3))
                self.inner = Inner()
                self.layers = nnx.List([Inner(), Inner()])
                self.use_mean = True

            def __call__(self, x):
                for layer in (self.inner, *self.layers):
                    x = x * layer.scale[...] * layer.factor
                return x + self.mean[...] if self.use_mean else x

            def step(self, states, x):
                return self(x), states

            def count(self, states, x):
                self.mean[...] = self.mean[...] + x
                return x, states

        self.Net, self.Inner = Net, Inner
        self.refused = pytest.importorskip("flax.errors").TraceContextError

    def get(self, cell):
        return cell[...]

    def set(self, cell, value):
        cell[...] = value

    def cell(self, value):
        return self.lib.BatchStat(value)


class Brainstate(Nnx):
    name = "brainstate"

    def __init__(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own
            bst = self.lib = pytest.importorskip("brainstate")

        class Inner(bst.nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = bst.ParamState(jnp.ones(3))
                self.factor = 1.0

        class Net(bst.nn.Module):
            def __init__(self):
                super().__init__()
                self.mean = bst.LongTermState(jnp.zeros(3))
                self.inner = Inner()
                self.layers = [Inner(), Inner()]
                self.use_mean = True

            def update(self, x):
                for layer in (self.inner, *self.layers):
                    x = x * layer.scale.value * layer.factor
                return x + self.mean.value if self.use_mean else x

            def step(self, states, x):
                return self(x), states

            def count(self, states, x):
                self.mean.value = self.mean.value + x
                return x, states

        self.Net, self.Inner = Net, Inner
        self.refused = sys.modules["brainstate._error"].TraceContextError

    def get(self, cell):
        return cell.value

    def set(self, cell, value):
        cell.value = value

    def cell(self, value):
        return self.lib.LongTermState(value)


@pytest.fixture(scope="module", params=[Nnx, Brainstate], ids=lambda cls: cls.name)
def lib(request):
    return request.param()


STATES = sm.States(v=sm.ShortTermState(jnp.zeros(3)))
X = jnp.arange(15.0).reshape(5, 3)


def right(lib, name):
    return rf"net, states = bridge\.{lib.name}\({name}\)"


def noted(error):
    return "\n".join(getattr(error, "__notes__", []))


def by_global(lib, m):
    space = {"m": m}
    exec("def f(states, x): return m.count(states, x)", space)
    return space["f"], "m.mean"


def by_inner_function(lib, m):
    def f(states, x):
        return (lambda: m.count(states, x))()

    return f, "m.mean"


def by_list(lib, m):
    every = [1, m]
    return lambda states, x: every[1].count(states, x), r"every\[1\].mean"


def by_dict(lib, m):
    every = {"a": m}
    return lambda states, x: every["a"].count(states, x), r"every\['a'\].mean"


def by_default(lib, m):
    def f(states, x, net=m):
        return net.count(states, x)

    return f, "net.mean"


def by_keyword(lib, m):
    def f(states, x, *, net=(m,)):
        return net[0].count(states, x)

    return f, r"net\[0\].mean"


def by_cell(lib, m):
    mean = m.mean

    def f(states, x):
        lib.set(mean, lib.get(mean) + x)
        return x, states

    return f, "mean"


def by_wrapper(lib, m):
    def f(states, x):
        return m.count(states, x)

    @functools.wraps(f)
    def wrapped(*args):
        return f(*args)

    return wrapped, "m.mean"


WAYS = [by_global, by_inner_function, by_list, by_dict, by_default, by_keyword, by_cell, by_wrapper,
        lambda lib, m: (m.count, "self.mean")]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("how", [sm.vmap2, sm.scan])
def test_a_write_of_a_lane_is_refused_by_name(lib, way, how):
    m = lib.Net()
    f, path = way(lib, m)
    before = lib.get(m.mean)
    with pytest.raises(lib.refused, match="(?s).") as error:
        how(f)(STATES, X)
    root = path.replace(".mean", "")
    name = "module" if way is by_cell else root
    assert noted(error.value).count("writes to") == 1
    with pytest.raises(ValueError, match=rf"(?s)writes to `{path}`.*Wrong:.*{right(lib, name)}"):
        raise ValueError(noted(error.value))
    assert lib.get(m.mean) is before


def test_a_write_in_a_mapping_of_a_mapping_is_noted_once(lib):
    m = lib.Net()

    def f(states, x):
        return m.count(states, x)

    twice = sm.vmap2(sm.vmap2(f))
    with pytest.raises(lib.refused, match="(?s).") as error:
        twice(STATES, jnp.stack([X, X]))
    assert noted(error.value).count("writes to `m.mean`") == 1


def test_an_error_of_the_users_own_is_left_alone(lib):
    m = lib.Net()

    def f(states, x):
        m(x)
        raise RuntimeError("my own")

    with pytest.raises(RuntimeError, match="my own") as error:
        sm.vmap2(f)(STATES, X)
    assert "bridge" not in noted(error.value)


def test_what_is_bound_by_a_partial_or_a_module_is_not_lost(lib):
    m = lib.Net()

    class Model(eqx.Module):
        net: object

        def __call__(self, states, x):
            return self.net.count(states, x)

        def other(self, states, x):
            return self.net.count(states, x)

    def f(net, states, x):
        return net.count(states, x)

    model = Model(m)
    for fn, path in [
        (functools.partial(f, m), "net.mean"),
        (functools.partial(f, net=m), "net.mean"),
        (jax.tree_util.Partial(f, m), "net.mean"),
        (model, "self.net.mean"),
        (model.other, "self.net.mean"),
    ]:
        if isinstance(fn, functools.partial) and fn.keywords:
            fn = functools.partial(lambda states, x, net: f(net, states, x), net=m)
        with pytest.raises((lib.refused, TypeError), match="(?s).") as error:
            sm.vmap2(fn)(STATES, X)
        assert f"`{path}`" in str(error.value) + noted(error.value)
        assert lib.get(m.mean).tolist() == [0.0] * 3


@pytest.mark.parametrize("static", [False, True])
def test_a_write_to_an_argument_is_refused(lib, static):
    m = lib.Net()
    options = dict(static_argnums=0, in_axes=(None, 0)) if static else dict(in_axes=(None, 0))
    mapped = sm.vmap2(lambda states, net, x: net.count(states, x), **options)
    with pytest.raises((lib.refused, TypeError), match="(?s).") as error:
        mapped(STATES, m, X)
    assert "writes to `net.mean`" in str(error.value) + noted(error.value)
    assert lib.get(m.mean).tolist() == [0.0] * 3

    def by_name(states, x, *, nets):
        return nets["a"].count(states, x)

    if lib.name == "nnx" and not static:
        many = jax.tree.map(lambda leaf: jnp.stack([leaf] * 5), m)
        with pytest.raises(TypeError, match=r"writes to `nets\['a'\].mean`"):
            sm.vmap2(by_name)(STATES, X, nets={"a": many})


def test_a_write_of_what_is_no_tracer_is_put_back():
    lib = Brainstate()
    m = lib.Net()
    m.settings, one = {"a": 1}, jnp.ones(3)

    def value(states, x):
        lib.set(m.mean, one)
        return x, states

    def attribute(states, x):
        m.use_mean, m.more = False, 3
        return x, states

    def submodule(states, x):
        m.inner.factor = 2.0
        return x, states

    def of_list(states, x):
        m.layers.append(None)
        return x, states

    def of_dict(states, x):
        m.settings["b"] = 2
        return x, states

    paths = [
        "m.mean",
        "m.more|m.use_mean",
        "m.inner.factor",
        r"m.layers\[2\]",
        r"m.settings\['b'\]",
    ]
    was = repr(m)
    for f, path in zip([value, attribute, submodule, of_list, of_dict], paths):
        for how in (sm.vmap2, sm.scan):
            with pytest.raises(
                TypeError, match=rf"(?s)writes to `({path})`.*bridge.brainstate\(m\)"
            ):
                how(f)(STATES, X)
            assert repr(m) == was and not hasattr(m, "more")
            assert m.settings == {"a": 1} and lib.get(m.mean).tolist() == [0.0] * 3

    def fails(states, x):
        lib.set(m.mean, one)
        raise RuntimeError("my own")

    with pytest.raises(RuntimeError, match="my own"):
        sm.vmap2(fails)(STATES, X)
    assert lib.get(m.mean).tolist() == [0.0] * 3


def test_no_tracer_leaks_into_a_cell_under_a_transform_of_its_own():
    lib = Brainstate()
    m = lib.Net()

    @lib.lib.transform.jit
    def run(x):
        return sm.vmap2(lambda states, x: m.count(states, x))(STATES, x)[0]

    with pytest.raises(TypeError, match="writes to `m.mean`"):
        run(X)
    assert lib.get(m.mean).tolist() == [0.0] * 3


def value(lib, m):
    old = lib.get(m.mean)
    lib.set(m.mean, jnp.full(3, 7.0))
    return "m.mean", lambda: lib.set(m.mean, old)


def deep_value(lib, m):
    old = lib.get(m.layers[1].scale)
    lib.set(m.layers[1].scale, jnp.full(3, 7.0))
    return r"m.layers\[1\].scale", lambda: lib.set(m.layers[1].scale, old)


def flag(lib, m):
    m.use_mean = False
    return "m.use_mean", lambda: setattr(m, "use_mean", True)


def number(lib, m):
    m.inner.factor = 1  # for which Python has `1 == 1.0`
    return "m.inner.factor", lambda: setattr(m.inner, "factor", 1.0)


def submodule(lib, m):
    old = m.inner
    m.inner = lib.Inner()
    return "m.inner.scale", lambda: setattr(m, "inner", old)


def item(lib, m):
    old = m.layers[0]
    m.layers[0] = lib.Inner()
    return r"m.layers\[0\].scale", lambda: m.layers.__setitem__(0, old)


def gone(lib, m):
    old = m.use_mean
    del m.use_mean
    return "m.use_mean", lambda: setattr(m, "use_mean", old)


@pytest.mark.parametrize("change", [value, deep_value, flag, number, submodule, item, gone])
def test_what_has_changed_is_never_read_stale(lib, change, runs):
    m = lib.Net()

    @runs
    def f(states, x):
        return m(x), states

    f.__wrapped__ = lambda states, x: m(x)  # what `runs` wraps is not looked into
    mapped = sm.vmap2(f)
    expected = mapped(STATES, X)[0]
    assert expected.tolist() == mapped(STATES, X)[0].tolist() == m(X).tolist()
    count = runs.count
    path, back = change(lib, m)
    again = r"sm\.vmap2\(counted, \.\.\.\)"
    message = rf"(?s)`{path}` has changed since `counted` was traced.*{again}.*{right(lib, 'm')}"
    for _ in range(2):
        with pytest.raises(TypeError, match=message):
            mapped(STATES, X)
        with pytest.raises(TypeError, match=message):  # other shapes, another program
            mapped(STATES, X[:2])
        with pytest.raises(TypeError, match=message):
            mapped.plan(STATES, X)
        with pytest.raises(TypeError, match=message):
            jax.jit(lambda x: mapped(STATES, x)[0])(X)
    assert runs.count == count
    if change is not gone:  # a new mapping of the same function does not find what is stale
        new = sm.vmap2(f)(STATES, X)[0]
        assert runs.count == count + 1 and new.tolist() == m(X).tolist()
    back()
    assert mapped(STATES, X)[0].tolist() == expected.tolist()
    assert runs.count <= count + 1


def test_a_name_bound_anew_is_a_change(lib):
    m = lib.Net()

    def f(states, x):
        return m(x), states

    mapped = sm.vmap2(f)
    mapped(STATES, X)
    m = lib.Net()
    lib.set(m.mean, jnp.ones(3))
    with pytest.raises(TypeError, match="`m.inner.scale` has changed|`m.mean` has changed"):
        mapped(STATES, X)
    assert sm.vmap2(f)(STATES, X)[0].tolist() == m(X).tolist()
    m = None
    with pytest.raises(TypeError, match="`m` has changed since `f` was traced"):
        mapped(STATES, X)


def test_the_mode_of_a_module():
    dropout = Nnx().lib.Dropout(0.5, deterministic=True)

    def f(states, x):
        return dropout(x), states

    mapped = sm.vmap2(f)
    assert mapped(STATES, X)[0].tolist() == X.tolist()
    dropout.train()
    with pytest.raises(TypeError, match="`dropout.deterministic` has changed"):
        mapped(STATES, X)
    dropout.eval()
    assert mapped(STATES, X)[0].tolist() == X.tolist()


def test_a_step_of_a_scan_is_never_stale(lib):
    m = lib.Net()

    def f(states, x):
        return m(x), states

    run = sm.scan(f)
    assert run(STATES, X)[0].tolist() == m(X).tolist()
    lib.set(m.mean, jnp.ones(3))
    with pytest.raises(TypeError, match=r"(?s)`m.mean` has changed since `f`.*`sm\.scan\(f\)`"):
        run(STATES, X)
    assert sm.scan(f)(STATES, X)[0].tolist() == m(X).tolist()
    mapped = sm.vmap2(sm.scan(f), in_axes=None, axis_size=2)
    mapped(STATES, X)
    lib.set(m.mean, jnp.zeros(3))
    with pytest.raises(TypeError, match="`m.mean` has changed"):
        mapped(STATES, X)


def test_what_is_only_read_is_traced_once(lib, runs):
    m = lib.Net()

    def f(states, x):
        runs.count += 1
        return m(x), states

    for _ in range(3):
        mapped = sm.vmap2(f)
        for _ in range(3):
            assert mapped(STATES, X)[0].tolist() == m(X).tolist()
    assert runs.count == 1
    m.use_mean = bool(1)  # an equal value is no change
    lib.set(m.mean, lib.get(m.mean))
    assert mapped(STATES, X)[0].tolist() == m(X).tolist() and runs.count == 1


@pytest.mark.parametrize("bind", [functools.partial, jax.tree_util.Partial])
def test_what_is_bound_or_given_is_read_as_it_is_now(lib, bind):
    m = lib.Net()

    def f(net, states, x):
        return net(x), states

    mapped = sm.vmap2(bind(f, m))
    given = sm.vmap2(lambda states, net, x: (net(x), states), in_axes=(None, 0))
    static = sm.vmap2(
        lambda states, net, x: (net[0](x), states), in_axes=(None, 0), static_argnums=0
    )
    for k in range(3):
        if lib.name == "nnx" or k == 0:  # whose modules are pytrees
            assert mapped(STATES, X)[0].tolist() == m(X).tolist()
        else:
            with pytest.raises(TypeError, match="`net.mean` has changed"):
                mapped(STATES, X)
        assert given(STATES, m, X)[0].tolist() == m(X).tolist()
        assert static(STATES, (m,), X)[0].tolist() == m(X).tolist()
        lib.set(m.mean, jnp.full(3, k + 1.0))


def test_under_a_transform_of_the_librarys_own(lib):
    m = lib.Net()
    around = lib.lib.jit if lib.name == "nnx" else lib.lib.transform.jit
    mapped = sm.vmap2(lambda states, x: (m(x), states))
    mapped(STATES, X)

    if lib.name == "nnx":

        @around
        def run(m, x):
            one = sm.vmap2(lambda states, x: (m(x), states))
            run_scan = sm.scan(lambda states, x: (m(x), states))
            a, b = one(STATES, x)[0], run_scan(STATES, x)[0]
            m.mean[...] = m.mean[...] + 1.0
            return a, b, sm.vmap2(lambda states, x: (m(x), states))(STATES, x)[0]

        call = lambda: run(m, X)
    else:
        scanned = sm.scan(lambda states, x: (m(x), states))

        @around
        def run(x):
            a, b = mapped(STATES, x)[0], scanned(STATES, x)[0]
            m.mean.value = m.mean.value + 1.0
            return a, b, mapped(STATES, x)[0]

        call = lambda: run(X)
    for k in range(3):
        before = m(X)
        a, b, c = call()
        assert a.tolist() == b.tolist() == before.tolist()
        assert c.tolist() == m(X).tolist() == (before + 1).tolist()
    run_again = jax.jit(lambda x: sm.vmap2(lambda s, x: (m(x), s))(STATES, x)[0])
    assert run_again(X).tolist() == m(X).tolist()


def test_the_object_itself_is_refused(lib):
    m = lib.Net()
    step = sm.vmap2(lambda states, x: (x, states))
    run = sm.scan(lambda states, x: (x, states))
    cases = [
        (lambda: sm.vmap2(m), "A mapping was given as its function"),
        (lambda: sm.pmap2(m), "A mapping was given as its function"),
        (lambda: sm.scan(m), "`scan` was given as its step"),
        (lambda: sm.Map(m, 3), "`Map` was given"),
        (lambda: sm.make_with_states(m), "`make_with_states` was given"),
        (lambda: sm.make_with_states(lib.Net)(), "What makes a model returned"),
        (lambda: sm.vmap2_new_states(m, axis_size=2), "New states are made by"),
        (lambda: sm.vmap2_new_states(lib.Net, axis_size=2), "What makes a model returned"),
        (lambda: sm.declare(m, sm.ParamState), "`declare` makes the arrays"),
        (lambda: sm.declare([m], sm.ParamState), "`declare` makes the arrays"),
        (lambda: step(m, X), "A mapping takes the states first"),
        (lambda: step([m], X), "A mapping takes the states first"),
        (lambda: step(m.mean, X), "A mapping takes the states first"),
        (lambda: run(m, X), "A mapping takes the states first"),
    ]
    for call, message in cases:
        with pytest.raises(TypeError, match=f"(?s){message}.*Wrong:.*{right(lib, 'module')}"):
            call()


def test_a_module_as_a_value_is_owned():
    """Containers of a value are made anew on every way in and out, and a module is one."""
    lib = Nnx()
    states = sm.States(net=sm.LongTermState(lib.Net()))

    @sm.vmap2(state_in_axes=None, state_out_axes={0: ...})
    def f(states, x):
        net = states["net"]
        net.mean[...] = net.mean[...] + x
        return net(x), states.set("net", net)

    out, after = f(states, X)
    assert states["net"].mean[...].tolist() == [0.0] * 3
    assert after["net"].mean[...].tolist() == X.tolist() and out.tolist() == (2 * X).tolist()
    net = after["net"]
    net.mean[...] = jnp.zeros((5, 3))
    assert after["net"].mean[...].tolist() == X.tolist()


def test_a_state_of_brainstate_is_no_value():
    lib = Brainstate()
    with pytest.raises(TypeError, match="(?s)brainstate.*bridge.brainstate"):
        sm.ParamState(lib.Net().mean)
    with pytest.raises(TypeError, match="(?s)brainstate.*bridge.brainstate"):
        sm.ParamState({"w": jnp.ones(3), "mean": lib.Net().mean})


def test_randomness_from_outside_of_what_makes_new_states():
    lib = Nnx()
    rngs = lib.lib.Rngs(0)

    def make(*, key):
        return {"w": sm.ParamState(rngs.params.normal((3,)))}

    for kwargs in [{}, {"init_kwargs": {}}]:
        with pytest.raises(lib.refused, match="RngCount") as error:
            sm.vmap2_new_states(make, key=jax.random.key(0), axis_size=3, **kwargs)
        assert "`make` writes to `rngs.default.count`" in noted(error.value)
        assert "Right:  def make(*, key): rngs = nnx.Rngs(key); ..." in noted(error.value)
    with pytest.raises(lib.refused, match="RngCount") as error:
        sm.vmap2_new_states(lambda rngs: rngs(), dict(rngs=rngs), axis_size=3)
    assert "writes to `rngs.default.count`" in noted(error.value)

    def inside(*, key):
        return {"w": sm.ParamState(lib.lib.Rngs(key).params.normal((3,)))}

    _, states, _ = sm.vmap2_new_states(inside, key=jax.random.key(0), axis_size=3)
    assert len({*map(float, states["w"][:, 0])}) == 3


def test_functions_that_reach_nothing_foreign_pay_nothing(lib):
    step = sm.vmap2(lambda states, x: (x + states["v"], states))
    step(STATES, X)
    step(STATES, X)
    entered = []

    def note(frame, event, arg):
        if event == "call" and "/statemap/_" in frame.f_code.co_filename:
            entered.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        step(STATES, X)
    finally:
        sys.setprofile(None)
    assert not {"is_same", "classes", "_is_as_before", "reach"} & set(entered)
    assert entered.count("__call__") == 1


def test_nothing_is_kept_alive(lib):
    m = lib.Net()
    m.inner.factor = f = lambda states, x: (m(x), states)  # a cycle
    m.inner.factor = 1.0
    m.act = f
    gone = weakref.ref(f)
    sm.vmap2(f)(STATES, X)
    del f, m
    gc.collect()
    assert gone() is None


def test_functions_of_statemap_answer_for_what_they_hold(lib):
    """Such as the functions that the bridge and the shim make."""
    m = lib.Net()
    space = {"__name__": "statemap.bridge._some", "m": m}
    exec("def f(states, x): return m(x), states", space)
    mapped = sm.vmap2(space["f"])
    mapped(STATES, X)
    m.use_mean = False
    mapped(STATES, X)


def test_a_program_of_a_trace_around_is_not_used_after_it():
    lib = Brainstate()
    m = lib.Net()
    mapped = sm.vmap2(lambda states, x: (m(x), states))

    @lib.lib.transform.jit
    def run():
        return mapped(STATES, X)[0]  # nothing that is given is traced, and what is reached is

    for k in range(3):
        assert run().tolist() == m(X).tolist()
        assert mapped(STATES, X)[0].tolist() == m(X).tolist()
        lib.set(m.mean, jnp.full(3, k + 1.0))
        assert run().tolist() == m(X).tolist()
        mapped = sm.vmap2(mapped.origin_fun)


@dataclasses.dataclass
class _Settings:
    k: float = 1.0


def _scaled(kind):
    """A module of NNX with static data that changes in place, what it scales by, and the change."""
    nnx = pytest.importorskip("flax.nnx")
    data, get, change = {
        "list": ([1.0], lambda d: d[0], lambda d: d.__setitem__(0, 2.0)),
        "dict": ({"k": 1.0}, lambda d: d["k"], lambda d: d.__setitem__("k", 2.0)),
        "set": ({1.0}, max, lambda d: d.add(2.0)),
        "nested": (([1.0],), lambda d: d[0][0], lambda d: d[0].__setitem__(0, 2.0)),
        "settings": (_Settings(), lambda d: d.k, lambda d: setattr(d, "k", 2.0)),
        "numbers": (np.ones(()), lambda d: d, lambda d: d.__setitem__((), 2.0)),
    }[kind]

    class Scaled(nnx.Module):
        def __init__(self):
            self.weight = nnx.Param(jnp.ones(()))
            self.data = nnx.data(data) if kind == "numbers" else data

        def __call__(self, x):
            return x * self.weight[...] * get(self.data)

    return Scaled(), lambda module: change(module.data)


_IN_PLACE = ["list", "dict", "set", "nested", "settings", "numbers"]


@pytest.mark.parametrize("kind", _IN_PLACE)
def test_static_data_that_changes_in_place_is_not_stale_in_what_is_closed_over(kind):
    module, change = _scaled(kind)
    mapped = sm.vmap2(lambda states, x: (module(x), states))
    for _ in range(3):
        assert mapped(sm.States(), jnp.ones(2))[0].tolist() == [1.0, 1.0]
    change(module)
    with pytest.raises(TypeError, match=r"`module\.data.*` has changed since"):
        mapped(sm.States(), jnp.ones(2))


@pytest.mark.parametrize("kind", _IN_PLACE)
def test_static_data_that_a_lane_changes_in_place_is_put_back(kind):
    module, change = _scaled(kind)

    def step(states, x):
        change(module)
        return module(x), states

    with pytest.raises(TypeError, match=r"writes to `module\.data"):
        sm.vmap2(step)(sm.States(), jnp.ones(2))
    assert (module.data if kind == "numbers" else module(1.0)) == 1.0


@pytest.mark.parametrize("kind", _IN_PLACE)
@pytest.mark.parametrize("is_argument", [True, False], ids=["argument", "partial"])
def test_static_data_that_changes_in_place_is_not_stale_in_what_is_given(kind, is_argument):
    module, change = _scaled(kind)

    def fn(module, states, x):
        return module(x), states

    given = sm.vmap2(lambda states, module, x: fn(module, states, x), in_axes=(None, 0))
    bound = sm.vmap2(functools.partial(fn, module))
    for factor in (1.0, 1.0, 1.0, 2.0, 2.0):
        if factor == 2.0 and module(1.0) == 1.0:
            change(module)
        call = (given, (sm.States(), module)) if is_argument else (bound, (sm.States(),))
        assert call[0](*call[1], jnp.ones(2))[0].tolist() == [factor, factor]
