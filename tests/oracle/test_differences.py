"""What differs on purpose: each row of the table in "Moving from brainstate" runs on both."""

import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from statemap import compat

from .peer import brainstate


PAGE = pathlib.Path(__file__).parents[2] / "docs" / "brainstate.md"
PROGRAMS: dict[str, Callable[[Any], Any]] = {}


def program(row: str) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """The program of a row, which is known by the text of its first cell."""
    return lambda fn: PROGRAMS.setdefault(row, fn)


@program("a scalar cell, mapped on axis 0 and written")
def _(bs: Any) -> Any:
    count = bs.ShortTermState(jnp.array(0.0))

    @bs.transform.vmap2(state_in_axes={0: bs.ShortTermState}, state_out_axes={0: bs.ShortTermState})
    def add(x: Any) -> Any:
        count.value = count.value + x
        return count.value

    return add(jnp.arange(3.0))


@program("lanes that are written to a cell which no filter matches")
def _(bs: Any) -> Any:
    last = bs.ShortTermState(jnp.array(0.0))

    def write(x: Any) -> None:
        last.value = x

    bs.transform.vmap2(write)(jnp.arange(3.0))
    return last.value


@program("`pmap2(donate_argnums=0)`")
def _(bs: Any) -> Any:
    return bs.transform.pmap2(lambda x: x + 1, donate_argnums=0)(jnp.arange(float(_devices())))[0]


@program("`pmap2` of twice as many lanes as there are devices")
def _(bs: Any) -> Any:
    return bs.transform.pmap2(lambda x: x + 1)(jnp.arange(2.0 * _devices()))[0]


def _devices() -> int:
    return jax.device_count()


@program("filters of two axes that match one new cell")
def _(bs: Any) -> Any:
    model = _model(bs, jnp.ones(2))
    axes = {0: bs.ShortTermState, 1: bs.util.filter.OfType(bs.State)}
    bs.transform.vmap2_new_states(model, {}, axis_size=3, state_out_axes=axes)
    return model.v.value.shape


@program("`NonBatchState`")
def _(bs: Any) -> Any:
    return bs.NonBatchState(1.0).value


@program("how often a mapped function runs in the first call and the next")
def _(bs: Any) -> Any:
    runs = []
    v = bs.ShortTermState(jnp.zeros(3))
    counts = []

    def add(x: Any) -> None:
        runs.append(None)
        v.value = v.value + x

    mapped = bs.transform.vmap2(
        add, state_in_axes={0: bs.ShortTermState}, state_out_axes={0: bs.ShortTermState}
    )
    for _ in range(2):
        runs.clear()
        mapped(jnp.arange(3.0))
        counts.append(len(runs))
    return tuple(counts)


@program("`get_arg_cache_key` of a mapping")
def _(bs: Any) -> Any:
    return isinstance(hash(bs.transform.vmap2(jnp.sin).get_arg_cache_key(jnp.ones(2))), int)


@program("the first argument of a function that `nn.Map.map` is given")
def _(bs: Any) -> Any:
    population = bs.nn.Map(_model(bs, jnp.ones(2)), init_map_size=3)
    population.init_all_states()
    return population.map(lambda module: module.v.value.sum(), in_axes=())()


@program("`axis_name` of `nn.Map` in `map`")
def _(bs: Any) -> Any:
    population = bs.nn.Map(_model(bs, jnp.ones(2)), init_map_size=3, axis_name="members")
    population.init_all_states()
    total = lambda *rest: jax.lax.psum(rest[-1], "members")
    return population.map(total)(jnp.arange(3.0))


@program('`nn.Map(behavior="scan")`')
def _(bs: Any) -> Any:
    return bs.nn.Map(_model(bs, jnp.ones(2)), init_map_size=3, behavior="scan")


@program("a jitted module whose cells are made anew, before the next call")
def _(bs: Any) -> Any:
    model = _model(bs, jnp.zeros(()))
    bs.nn.init_all_states(model)
    step = bs.transform.jit(model)
    step(1.0)
    bs.nn.init_all_states(model)
    step(1.0)
    return model.v.value


@program("a jitted function that reads `dt`, with 0.5 and then with 2.0")
def _(bs: Any) -> Any:
    step = bs.transform.jit(lambda x: x * bs.environ.get("dt"))
    with bs.environ.context(dt=0.5):
        first = step(1.0)
    with bs.environ.context(dt=2.0):
        return float(first), float(step(1.0))


@program("a cell that is read under `jax.jit`, and written between two calls")
def _(bs: Any) -> Any:
    v = bs.State(jnp.array(1.0))
    read = jax.jit(lambda: v.value)
    first = float(read())
    v.value = jnp.array(2.0)
    return first, float(read())


@program("whether a module still has its cells after a `vmap2_new_states` that failed")
def _(bs: Any) -> Any:
    class Model(bs.nn.Module):
        bad = False

        def init_state(self) -> None:
            self.v = bs.ShortTermState(jnp.zeros(2))
            if self.bad:
                raise RuntimeError("no more")

    model = Model()
    model.init_all_states()
    before, model.bad = model.v, True
    with pytest.raises(RuntimeError, match="no more"):
        bs.transform.vmap2_new_states(model, {}, axis_size=3)
    return model.v is before


@program("the stream after a mapped call that draws once")
def _(bs: Any) -> Any:
    bs.random.seed(0)
    bs.transform.vmap2(lambda: bs.random.normal(), in_axes=None, axis_size=3)()
    key = jax.random.key(0)
    once = jax.random.split(key, 4)[0]
    now = bs.random.get_key()
    return bool((jax.random.key_data(once) == jax.random.key_data(now)).all())


@program("`random.bernoulli(2.0)` under `jit`")
def _(bs: Any) -> Any:
    out = bs.transform.jit(lambda p: bs.random.bernoulli(p))(2.0)
    jax.effects_barrier()
    return bool(out)


def _model(bs: Any, value: Any) -> Any:
    class Model(bs.nn.Module):
        def init_state(self) -> None:
            self.v = bs.ShortTermState(value)

        def update(self, x: Any) -> Any:
            self.v.value = self.v.value + x
            return self.v.value

    return Model()


def shown(fn: Callable[[Any], Any], bs: Any) -> str:
    """What a program gives, as the table has it: a value, or the name of an error."""
    try:
        value = fn(bs)
    except Exception as error:
        return type(error).__name__
    return str(np.asarray(value).tolist() if hasattr(value, "dtype") else value)


def table() -> dict[str, tuple[str, str]]:
    """The rows of the page, with what its cells have in code first."""
    section = PAGE.read_text().partition("## What differs on purpose")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", section, re.M)
    return {row: (_code(theirs), _code(ours)) for row, theirs, ours in rows}


def _code(cell: str) -> str:
    found = re.search(r"`(.+?)`", cell)
    return found[1] if found else cell


def test_each_row_has_a_program():
    assert table().keys() == PROGRAMS.keys()


@pytest.mark.filterwarnings("ignore")  # brainstate's own
@pytest.mark.parametrize("row", PROGRAMS)
def test_row(row: str):
    theirs, ours = table()[row]
    assert shown(PROGRAMS[row], brainstate) == theirs
    assert shown(PROGRAMS[row], compat) == ours
