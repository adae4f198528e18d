"""From functions of cells to programs: which cells go in, and what a program is for."""

import copy
import dataclasses
import pickle
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from statemap import compat
from statemap.compat import environ, nn, ParamState, ShortTermState, State, transform, util


AXIS0 = {0: util.filter.OfType(ShortTermState)}
X = jnp.arange(3.0)


def mapped(f):
    return transform.vmap2(f, state_in_axes=AXIS0, state_out_axes=AXIS0)


WRAPS = pytest.mark.parametrize("wrap", [transform.jit, mapped], ids=["jit", "vmap2"])


# Settings.


@WRAPS
def test_threads_that_trace_at_once_under_other_settings(wrap):
    both = threading.Barrier(2)

    def f(x):
        dt = environ.get("dt")
        try:
            both.wait(0.5)  # both are in the function, if it is traced by both at once
        except threading.BrokenBarrierError:
            pass
        return x * dt

    step, found = wrap(f), {}

    def work(dt):
        with environ.context(dt=dt):
            found[dt] = [step(X).tolist() for _ in range(3)]

    threads = [threading.Thread(target=work, args=(dt,)) for dt in (2.0, 3.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {dt: [(X * dt).tolist()] * 3 for dt in (2.0, 3.0)}
    for dt in (2.0, 3.0, 5.0, 2.0):
        with environ.context(dt=dt):
            assert step(X).tolist() == (X * dt).tolist()


@WRAPS
def test_a_setting_that_only_another_signature_reads(wrap):
    runs = []

    def f(x):
        runs.append(jnp.shape(x))
        return x * environ.get("dt") if jnp.ndim(x) == (wrap is transform.jit) else x

    step = wrap(f)
    assert step(X[None] if wrap is transform.jit else X[:, None]).shape in ((1, 3), (3, 1))
    for dt in (2.0, 3.0, 2.0):
        with environ.context(dt=dt):
            assert step(X).tolist() == (X * dt).tolist()
    assert len(runs) <= 4


def test_a_setting_that_is_traced():
    step = transform.jit(lambda x: x * environ.get("t"))

    def body(i):
        with environ.context(t=i * 0.5):
            return step(2.0)

    for _ in range(2):
        assert transform.for_loop(body, X).tolist() == X.tolist()
        with environ.context(t=4.0):
            assert step(2.0) == 8


# Which cells.


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.v = ShortTermState(jnp.zeros(3))
        self.other = ShortTermState(jnp.zeros(5))
        self.count = ShortTermState(jnp.zeros(()))

    def update(self, x):
        self.v.value = self.v.value + x
        return self.v.value

    def reset(self):
        self.v = ShortTermState(jnp.zeros(3))


def test_only_cells_that_are_used_are_judged():
    model, runs = Two(), []

    def step(x):
        runs.append(1)
        return model(x)

    adds = mapped(step)
    for k in (1, 2, 3):
        assert adds(X).tolist() == (k * X).tolist()
    n = len(runs)
    model.reset()
    assert adds(X).tolist() == model.v.value.tolist() == X.tolist()
    assert n <= 2 and len(runs) == n
    assert adds.plan(X)["model.v"].axis_in == 0 and len(adds.plan(X).rows) == 1

    def wrong(x):
        model.other.value = model.other.value + x

    with pytest.raises(ValueError, match="5  state `model.other` along axis 0"):
        mapped(wrong)(X)
    with pytest.raises(compat.BatchAxisError, match=r"`model.count`.*axis 0"):
        mapped(lambda x: model.count.value + x)(X)
    sized = transform.vmap2(lambda: model.v.value * 2, in_axes=None, state_in_axes={0: [model.v]})
    assert sized().tolist() == [0, 2, 4]


def test_a_call_that_is_refused_leaves_what_is_compiled():
    model, runs = Two(), []
    del model.other, model.count

    def step(x):
        runs.append(1)
        return model(x)

    adds = mapped(step)
    adds(X)
    with pytest.raises(ValueError, match="number of lanes differs"):
        adds(jnp.arange(4.0))
    assert adds(X).tolist() == (2 * X).tolist() and len(runs) == 1


def test_errors_of_the_function_are_its_own():
    cause = KeyError("a cause")

    def fail(x):
        model = Two()
        raise ValueError(f"mine, `model.v` {model is None}") from cause

    with pytest.raises(ValueError, match="mine, `model.v` False") as error:
        mapped(fail)(X)
    assert error.value.__cause__ is cause


def test_what_only_cells_tell():
    model = Two()
    with pytest.raises(compat.BatchAxisError, match="`model.count`.* no axis 0"):
        transform.vmap2(lambda: model.v.value * 2, in_axes=None, state_in_axes=AXIS0)()
    model.count.value = jnp.zeros(4)
    with pytest.raises(ValueError, match="number of lanes differs"):  # which of them, it can't tell
        transform.vmap2(lambda: model.v.value * 2, in_axes=None, state_in_axes=AXIS0)()


@dataclasses.dataclass
class Holder:
    cell: object


Library = dataclasses.make_dataclass("Library", ["cell"], namespace={"__module__": "jax.of_others"})


@WRAPS
@pytest.mark.parametrize("make", [types.SimpleNamespace, Holder, Library])
def test_cells_in_what_libraries_hold_them_in(make, wrap):
    holder, seen = make(cell=ShortTermState(X)), []

    def f(x):
        seen.append(jnp.shape(holder.cell.value))
        holder.cell.value = holder.cell.value + x
        return holder.cell.value

    step = wrap(f)
    step(X)
    assert step(X).tolist() == (3 * X).tolist() == holder.cell.value.tolist()
    assert seen == [(3,) if wrap is transform.jit else ()]
    holder.cell = ShortTermState(jnp.zeros(3))
    assert step(X).tolist() == X.tolist() and len(seen) == 1


class Opaque:
    """What cells can't be found in."""

    __slots__ = ("get",)

    def __init__(self, cell):
        self.get = {"cell": cell}.__getitem__


@pytest.mark.parametrize("fails", [False, True])
def test_a_cell_that_is_found_late_is_a_lanes_own(fails):
    hidden, seen = Opaque(ShortTermState(X)), []

    def f(x):
        cell = hidden.get("cell")
        if fails and cell.value.shape:
            raise ZeroDivisionError("where it sees all lanes")
        seen.append(cell.value.shape)
        cell.value = cell.value + x
        return cell.value

    step = mapped(f)
    for k in (2, 3, 4):
        assert step(X).tolist() == (k * X).tolist()
    assert seen[-1] == () and len(seen) == 2 - fails


@WRAPS
def test_cells_in_a_set_are_told_apart(wrap):
    cells = {ShortTermState(X), ShortTermState(2 * X)}
    box = types.SimpleNamespace(cells=cells)

    def f(x):
        return sum(cell.value for cell in box.cells) + x

    step = wrap(f)
    assert step(X).tolist() == (4 * X).tolist()
    box.cells = {ShortTermState(X), ShortTermState(5 * X)}
    assert step(X).tolist() == (7 * X).tolist()


@WRAPS
def test_a_cell_that_is_only_written_may_be_made_anew(wrap):
    box = types.SimpleNamespace(cell=ShortTermState(jnp.zeros(3)), other=ShortTermState(X))

    def f(x):
        box.cell.value = box.other.value + x

    step = wrap(f)
    step(X)
    old, box.cell = box.cell, ShortTermState(jnp.zeros(3))
    step(2 * X)
    assert box.cell.value.tolist() == (3 * X).tolist() and old.value.tolist() == (2 * X).tolist()


@WRAPS
def test_threads_while_cells_are_made_anew(wrap):
    box = types.SimpleNamespace(a=ShortTermState(X), b=ShortTermState(10 * X))
    step, wrong = wrap(lambda x: box.a.value - box.b.value + x), []

    def work():
        for _ in range(30):
            a, b = ShortTermState(X), ShortTermState(10 * X)
            box.a, box.b = a, b
            if step(X).tolist() != (-8 * X).tolist():
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# What a call is asked about.


def scale(n, x, *, power=1):
    return n * x**power


def test_static_arguments_are_attributes_and_may_count_from_the_end():
    f = transform.jit(scale, static_argnums=(0,), static_argnames="power")
    assert (f.static_argnums, f.static_argnames) == ((0,), ("power",))
    assert f(2, X, power=2).tolist() == (2 * X**2).tolist()
    g = transform.StatefulMapping(lambda x, n: [x] * n, static_argnums=-1, in_axes=(0, None))
    assert (g.static_argnums, g.static_argnames) == ((1,), ())
    assert len(g(X, 2)) == 2 and len(g(X, 3)) == 3
    h = transform.jit(lambda x, n: [x] * n, static_argnums=-1)
    assert len(h(X, 2)) == 2 and len(h(X, 3)) == 3
    assert transform.vmap2(scale).static_argnums == ()
    p = transform.pmap2(lambda x, n: x * len(range(n)), static_broadcasted_argnums=-1,
                        in_axes=(0, None))  # fmt: skip
    assert p(jnp.ones(8), 3).tolist() == [3.0] * 8 and p.static_argnums == (1,)


def test_donated_arguments_may_count_from_the_end():
    f = transform.jit(lambda x, y: y + x, donate_argnums=-1)
    x, y = jnp.ones(3), jnp.ones(3)
    assert f(x, y).tolist() == [2, 2, 2]
    assert y.is_deleted() and not x.is_deleted()


TOTAL = ShortTermState(jnp.zeros(3))


@transform.jit
def jitted(x):
    TOTAL.value = TOTAL.value + x
    return TOTAL.value


@transform.vmap2(state_in_axes=AXIS0, state_out_axes=AXIS0)
def in_lanes(x):
    TOTAL.value = TOTAL.value + x
    return TOTAL.value


def plain(x):
    return x * 2


@pytest.mark.parametrize("call", [jitted, in_lanes], ids=["jit", "vmap2"])
def test_decorated_functions_pickle_by_name(call):
    assert pickle.loads(pickle.dumps(call)) is call is copy.deepcopy(call)
    before = TOTAL.value
    pickle.loads(pickle.dumps({"step": call}))["step"](X)
    assert TOTAL.value.tolist() == (before + X).tolist()


@pytest.mark.parametrize(
    "call",
    [
        transform.jit(plain),
        transform.jit(plain, static_argnums=(), name="other"),
        transform.vmap2(plain),
        transform.pmap2(plain),
        transform.StatefulMapping(plain, state_in_axes=AXIS0, name="mine"),
        transform.StatefulMapping(plain, mapping_fn=jax.vmap, mapping_kwargs={}),
        transform.vmap(plain),
    ],
    ids=["jit", "named", "vmap2", "pmap2", "mapping", "mapping_fn", "vmap"],
)
def test_transformed_functions_pickle(call):
    again = pickle.loads(pickle.dumps(call))
    assert type(again) is type(call) and again.__wrapped__ is plain
    x = jnp.arange(8.0)
    assert again(x).tolist() == call(x).tolist() == (2 * x).tolist()
    assert again.name == call.name if hasattr(call, "name") else True


def test_errors_of_mappings_name_a_cell_as_it_names_itself():
    cell = ShortTermState(jnp.zeros(4), name="membrane")
    with pytest.raises(ValueError, match=r"`cell` \(`membrane`\) along axis 0"):
        mapped(lambda x: cell.value + x)(X)
    shared = State(jnp.zeros(()), name="total")
    with pytest.raises(compat.BatchAxisError, match=r"`shared` \(`total`\)"):
        transform.vmap2(lambda x: setattr(shared, "value", x))(X)
    outer = transform.vmap2(lambda x: mapped(lambda y: cell.value + y)(X) + x)
    with pytest.raises(ValueError, match=r"`cell` \(`membrane`\) along") as error:
        outer(X)
    assert str(error.value).count("`membrane`") == 1


class Missing:  # as in brainstate
    pass


@pytest.mark.parametrize("wrap", [transform.jit, transform.vmap2, transform.pmap2, transform.vmap])
@pytest.mark.parametrize("missing", [None, Missing()])
def test_the_function_is_left_out_in_brainstates_words(wrap, missing):
    assert wrap(missing)(plain)(jnp.ones(8)).tolist() == [2.0] * 8


def test_without_jit_functions_see_values():
    cell, seen = ShortTermState(jnp.ones(3)), []

    @transform.jit
    def step(x):
        seen.append(float(x) + float(cell.value.sum()))
        cell.value = cell.value * 2

    with jax.disable_jit():
        step(1.0)
        step(1.0)
    assert seen == [4.0, 7.0]


# JAX's own transforms inside ours.


def foreign():
    return {
        "vmap": lambda f: jax.vmap(f)(X),
        "jit": lambda f: jax.jit(f)(X[2]),
        "scan": lambda f: jax.lax.scan(lambda c, x: (c, f(x)), 0, X)[1],
        "grad": lambda f: jax.grad(f)(X[2]),
        "cond": lambda f: jax.lax.cond(X[2] > 0, f, f, X[2]),
        "checkpoint": lambda f: jax.checkpoint(f)(X[2]),
    }


@pytest.mark.parametrize("around", ["jit", "vmap2", "grad", "for_loop"])
@pytest.mark.parametrize("name", foreign())
def test_reads_under_jaxs_transforms_inside_ours_are_of_the_moment(name, around):
    cell = ParamState(jnp.ones(()))
    read = lambda x: x * cell.value  # one function, which JAX has cached
    inside = lambda: foreign()[name](read)

    def program(y):
        before = inside()
        cell.value = cell.value + 1
        return y * 1.0, before, inside()

    def of(fn, y):
        if around == "grad":
            return transform.grad(lambda y: (fn(y)[0], fn(y)[1:]), has_aux=True)(y)[1]
        if around == "for_loop":
            return jax.tree.map(lambda a: a[0], transform.for_loop(fn, y[None])[1:])
        return transform.jit(fn)(y)[1:] if around == "jit" else (
            jax.tree.map(lambda a: a[0], transform.vmap2(fn)(y[None])[1:])
        )  # fmt: skip

    expected = lambda value: np.asarray(
        jax.tree.leaves(foreign()[name](lambda x: x * value))[0], float
    )
    now = 1.0
    for _ in range(3):
        before, after = of(program, jnp.ones(()))
        runs = 2 if around == "grad" else 1
        np.testing.assert_allclose(before, expected(now + runs - 1))
        np.testing.assert_allclose(after, expected(now + runs))
        now += runs
        assert cell.value == now
    cell.value = jnp.full((), 10.0)
    np.testing.assert_allclose(of(program, jnp.ones(()))[0], expected(10.0 + runs - 1))


@pytest.mark.parametrize("transformed", [transform.jit, transform.vmap2])
def test_a_decorated_method_is_compiled_once_for_each_object(transformed):
    runs = []

    class Scale:
        def __init__(self, weight):
            self.weight = State(jnp.asarray(weight))

        @transformed
        def of(self, x):
            runs.append(x)
            return self.weight.value * x

    one, two = Scale(2.0), Scale(3.0)
    for _ in range(3):
        assert one.of(jnp.ones(2)).tolist() == [2, 2]
        assert two.of(jnp.ones(2)).tolist() == [3, 3]
    assert len(runs) == 2
    one.weight.value = jnp.asarray(4.0)
    assert Scale.of.__get__(one)(jnp.ones(2)).tolist() == [4, 4] and len(runs) == 2
