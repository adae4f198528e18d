"""The shim's mappings against brainstate's."""

import jax
import jax.numpy as jnp
import pytest

from tests.oracle.same import arange, non_batch, same, values


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
@same
def test_axes(bst, axis):
    a = bst.ShortTermState(jnp.moveaxis(arange(3, 2, 4), 0, axis))
    tree = bst.HiddenState(arange(3, 2)), bst.State({"x": arange(3), "y": [arange(3, 4)]})
    shared = bst.ParamState(arange(2))
    axes = {axis: a, 0: list(tree)}
    axes = {0: [a, *tree]} if axis == 0 else axes

    @bst.transform.vmap2(in_axes=(1, None, {"k": 0, "l": None}), out_axes=(-1, 0, None),
                         state_in_axes=axes, state_out_axes=axes)  # fmt: skip
    def step(x, y, z):
        a.value = a.value * x[:, None] + y
        tree[0].value += shared.value * z["k"]
        tree[1].value = jax.tree.map(lambda v: v + x.sum() * z["l"], tree[1].value)
        return a.value, tree[0].value.sum(), y * 2

    args = arange(2, 3), 0.5, {"k": arange(3), "l": jnp.asarray(2.0)}
    return step(*args), step(*args), values(a, *tree, shared)


@same
def test_filters(bst):
    cells = [cls(arange(3)) for cls in (bst.ShortTermState, bst.LongTermState, bst.ParamState)]
    cells.append(bst.State(arange(3), tag="mine"))
    f = bst.util.filter
    axes = {0: f.Any(f.All(bst.LongTermState, f.Not(bst.ParamState)), "mine", bst.ShortTermState)}

    def step(x):
        for cell in (*cells[:2], cells[3]):
            cell.value = cell.value + x * cells[2].value[0]
        return cells[2].value

    mapped = bst.transform.vmap2(step, state_in_axes=axes, state_out_axes=axes)
    return mapped(arange(3)), values(*cells)


@same
def test_keywords_sizes_and_names(bst):
    cell, v = bst.State(jnp.zeros(())), bst.State(arange(3))
    t = bst.transform

    def step(x, *, y):
        mean = jax.lax.pmean(x * y["y"], "lanes")
        cell.value = mean
        return x - mean, jax.lax.axis_index("lanes")

    mapped = t.vmap2(step, axis_name="lanes")
    sized = t.vmap2(lambda: v.value.sum() + jnp.arange(2), in_axes=None, axis_size=4, out_axes=1)
    by_cell = t.vmap2(lambda: v.value * 2, in_axes=None, state_in_axes=v)
    return mapped(arange(3), y={"y": arange(3)}), cell.value, sized(), by_cell()


@same
def test_lanes_over_devices(bst):
    cell, shared, n = bst.ShortTermState(arange(8, 2)), bst.ParamState(arange(2)), bst.State(0)
    bst.random.seed(9)
    axes = {0: bst.ShortTermState}

    @bst.transform.pmap2(axis_name="i", in_axes=(0, None), state_in_axes=axes, state_out_axes=axes)
    def step(x, y):
        cell.value = cell.value * y + jax.lax.psum(x, "i") * shared.value
        n.value = n.value + 1
        return cell.value, bst.random.normal(size=2)

    return step(arange(8), 2.0), step(arange(8), 3.0)[0], values(cell, shared, n)


@same
def test_lanes_add_an_axis(bst):  # another size is refused by the shim, see tests/compat
    cell = bst.State(arange(3))
    mapped = bst.transform.vmap2(
        lambda x: setattr(cell, "value", x * jnp.ones(2)), state_in_axes=cell, state_out_axes=cell
    )
    mapped(arange(3))
    return cell.value


@same
def test_what_is_refused(bst):
    cell, errors = bst.State(arange(3)), []

    def step(x):
        cell.value = cell.value + x

    t = bst.transform
    for make, n in [
        (lambda: t.vmap2(step, unexpected_out_state_mapping="raise"), 3),
        (lambda: t.vmap(step), 3),
        (lambda: t.vmap2(step, state_in_axes=cell, state_out_axes=cell), 4),
        (lambda: t.vmap2(lambda x: x, in_axes=None), 3),
        (lambda: t.vmap2(lambda x: x, in_axes=(0, None)), 3),
    ]:
        with pytest.raises(Exception, match="axis|lane|batch|size|entries") as error:
            make()(arange(n))
        errors.append(type(error.value).__name__)
    return errors, cell.value


@pytest.mark.parametrize("seed", [0, 42])
@same
def test_draws_in_the_first_mapped_call(bst, seed):
    own = bst.random.RandomState(seed + 1)
    cell = bst.ShortTermState(jnp.zeros((3, 2)))
    bst.random.seed(seed)

    def step(x):
        cell.value = cell.value + bst.random.normal(0.0, x, size=2)
        drawn = [own.uniform(size=3), bst.random.randint(0, 10), bst.random.rand(2)]
        return drawn, bst.transform.for_loop(lambda y: y * bst.random.randn(2), jnp.arange(3.0))

    before = bst.random.normal(size=2)
    out = bst.transform.vmap2(step, state_in_axes={0: bst.ShortTermState},
                              state_out_axes={0: bst.ShortTermState})(arange(3))  # fmt: skip
    return before, out, cell.value


@same
def test_nested_maps(bst):
    bst.random.seed(7)
    cell, shared = bst.ShortTermState(arange(3, 2, 4)), bst.ParamState(arange(4))
    first = bst.State(arange(3))
    both = {0: bst.ShortTermState}

    def inner(x, y):
        cell.value = cell.value * x + shared.value
        return cell.value.sum() + y, bst.random.normal()

    def outer(x, y):
        first.value = first.value + y
        mapped = bst.transform.vmap2(
            inner, in_axes=(0, None), out_axes=(0, -1), state_in_axes=both, state_out_axes=both
        )
        return mapped(x, y * first.value)

    axes = {0: [cell, first]}
    mapped = bst.transform.vmap2(outer, in_axes=(1, 0), state_in_axes=axes, state_out_axes=axes)
    return mapped(arange(2, 3), arange(3)), values(cell, shared, first)


@same
def test_static_arguments_of_a_mapping(bst):
    cell = bst.State(arange(3))

    def step(n, x, name, *, power):
        cell.value = cell.value + n * x
        return {name: cell.value**power}

    mapped = bst.transform.StatefulMapping(
        step, in_axes=(None, 0, None), state_in_axes=cell, state_out_axes=cell,
        static_argnums=(0, 2), static_argnames=("power",),
    )  # fmt: skip
    calls = [mapped(n, arange(3), name, power=n) for n, name in ((2, "a"), (3, "b"), (2, "a"))]
    return calls, cell.value


@pytest.mark.parametrize("n", [3, 4])
@pytest.mark.parametrize("kind", ["rmw", "written", "both"])
@same
def test_the_policy_auto(bst, kind, n):
    a, b, c = bst.ShortTermState(arange(3)), bst.ShortTermState(arange(3, 2)), bst.State(arange(3))

    def step(x):
        if kind != "written":
            a.value = a.value + x
            b.value = b.value * c.value.sum() + x
        if kind != "rmw":
            c.value = x * jnp.ones(3)
        return a.value.sum()

    mapped = bst.transform.vmap2(step, unexpected_out_state_mapping="auto")
    one = mapped(arange(n)), values(a, b, c)
    return one, mapped(arange(n)) if kind != "both" else None, values(a, b, c)


@pytest.mark.parametrize("form", ["one", "list", "dict", "axes"])
@same
def test_vmap_by_cells(bst, form):
    a, b = bst.ShortTermState(arange(3, 2)), bst.ParamState(arange(3))
    out = bst.State(jnp.zeros(()))
    if form == "axes":
        a.value = a.value.T
    spec = {"one": a, "list": [a, b], "dict": {"a": a, "b": b}, "axes": {1: {"a": a}, 0: {"b": b}}}

    @bst.transform.vmap(
        in_axes=(0, None), out_axes=1, in_states=spec[form], out_states={0: {"o": out}}
    )
    def step(x, y):
        a.value = a.value + b.value.sum() * x * y
        out.value = a.value.sum()
        return a.value

    return step(arange(3), 2.0), step(arange(3), 2.0), values(a, b, out)


@same
def test_vmap_new_states(bst):
    bst.random.seed(3)
    made = []

    def make(x):
        made[:] = [bst.ShortTermState(bst.random.normal(size=2)), bst.ParamState({"x": x * 2}),
                   non_batch(bst)(jnp.arange(3)), bst.LongTermState(x)]  # fmt: skip
        made[0].value = made[0].value + x
        return x + 1

    exclude = bst.util.filter.OfType(bst.LongTermState)
    out = [bst.transform.vmap_new_states(make, state_tag="new")(arange(4)), values(*made)]
    out += [sorted(cell.tag) for cell in made]
    bst.random.seed(3)
    out.append(bst.transform.vmap_new_states(make, state_to_exclude=exclude)(arange(4)))
    return out, values(made[0], made[2])


@same
def test_vmap2_new_states(bst):
    class Net(bst.nn.Module):
        def init_state(self, size, scale=1.0):
            self.w = bst.ParamState(bst.random.normal(0.0, scale, size=(size, 2)))
            self.b = bst.ShortTermState({"b": bst.random.uniform(size=3)})
            self.n = non_batch(bst)(jnp.arange(3))
            self.i = bst.LongTermState(0)

    out = []
    for axes in (
        None,
        bst.ParamState,
        {1: bst.ParamState},
        {-1: bst.ParamState, 0: bst.ShortTermState},
        {0: ..., 1: bst.ParamState},
    ):
        bst.random.seed(5)
        net = Net()
        by_axis = bst.transform.vmap2_new_states(
            net, {"size": 4, "scale": 2.0}, state_tag="t", axis_size=3, state_out_axes=axes
        )
        found = {str(k): [type(c).__name__ for c in v] for k, v in by_axis.items() if v}
        out.append((values(net.w, net.b, net.n, net.i), sorted(net.w.tag), found))
    return out


@pytest.mark.parametrize("batch_size", [None, 1, 3, 4, 10])
@same
def test_map(bst, batch_size):
    w = bst.ParamState(arange(2))

    def f(x, y):
        return {"a": x @ w.value, "b": y["y"] * 2}

    xs = arange(10, 2), {"y": jnp.arange(10)}
    return bst.transform.map(f, *xs, batch_size=batch_size)


@same
def test_map_is_a_loop(bst):
    bst.random.seed(11)
    total = bst.ShortTermState(jnp.zeros(()))

    def f(x):
        total.value = total.value + x
        return total.value * bst.random.rand()

    return bst.transform.map(f, arange(5)), total.value, bst.random.DEFAULT.value
