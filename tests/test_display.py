"""How statemap's objects are shown in notebooks, and by treescope."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, strategies as st

import statemap as sm
from statemap._html import html_table

from .models import LIF, Nested


# treescope looks at all that numpy has.
pytestmark = pytest.mark.filterwarnings("ignore:The chararray class:DeprecationWarning")


class Layered(eqx.Module):
    net: eqx.nn.MLP
    lif: LIF

    def __init__(self, *, key):
        self.net = sm.declare(eqx.nn.MLP(2, 3, 4, 1, key=key), sm.ParamState)
        self.lif = LIF(3, 2, key=key)

    def __call__(self, states, x):
        x, states = self.lif(states, states[self.net](x))
        return x, states


class Cells(HTMLParser):
    """The texts of a table's cells, row by row; every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.open, self.above = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert tag in ("div", "table", "thead", "tbody", "tr", "th", "td")
        assert [name for name, _ in attrs] in ([], ["style"])
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in ("th", "td"):
            self.rows[-1][-1] += data
        else:
            self.above += data


texts = st.text(st.sampled_from("ab<>&\"'` \\n/=;"), max_size=8)


@given(title=texts, rows=st.lists(st.tuples(texts, texts), max_size=3))
def test_a_table_says_what_it_was_given(title, rows):
    cells = Cells(html_table(title, ("one", "two <b>"), rows, wraps=["two <b>"]))
    assert cells.rows == [["one", "two <b>"], *map(list, rows)] and cells.above == title


def odd_plan():
    def step(states, x):
        return x, states.update({"v<i>&": states["v<i>&"] + x, "rate": x.mean()})

    states = sm.States({
        "v<i>&": sm.ShortTermState(jnp.zeros(4)),
        "rate": sm.LongTermState(0.0),
        "w": sm.ParamState(jnp.ones((3, 3))),
    })  # fmt: skip
    rules = {0: sm.Any(sm.OfType(sm.LongTermState), sm.WithTag("<script>"))}
    mapping = sm.vmap2(step, state_in_axes={0: sm.ShortTermState}, state_out_axes=rules)
    return mapping.plan(states, jnp.ones(4))


def test_the_plan_is_a_table():
    plan = odd_plan()
    text = plan._repr_html_()
    cells = Cells(text)
    header, *rows = cells.rows
    assert header == ["path", "kind", "shape", "read", "written", "axis in", "axis out", "why"]
    assert cells.above == plan.title == "step (4 lanes)"
    assert [row[0] for row in rows] == [row.path for row in plan] == ["rate", "v<i>&", "w"]
    for shown, row in zip(rows, plan):
        yes = {True: "yes", False: "no"}
        assert shown[3:5] == [yes[row.read], yes[row.written]] and shown[7] == row.why
        assert shown[5:7] == [str(row.axis_in), str(row.axis_out)]
    assert "<script>" in rows[0][7] and "<script>" not in text and "<i>" not in text
    # The same words as in print.
    assert [" ".join(r).split() for r in rows] == [x.split() for x in repr(plan).splitlines()[3:]]


def test_tables_have_the_colours_of_the_page():
    text = odd_plan()._repr_html_()
    colours = re.findall(r"(?:color|background|border[a-z-]*): ([^;\"]*)", text)
    assert colours and all("#" not in c and "rgb(" not in c for c in colours)
    assert set(re.findall(r"(?<![-a-z])color: ([^;\"]*)", text)) == {"inherit"}
    assert set(re.findall(r"background[a-z-]*: ([^;\"]*)", text)) == {"none"}
    why = text.split("<td")[8]
    assert "white-space: normal" in why and "white-space: nowrap" in text.split("<td")[1]


def test_a_load_report_is_a_table():
    old = sm.States(a=sm.State(jnp.zeros(2)), b=sm.ParamState(1.0, tag="<b>"))
    new, report = sm.States(a=sm.State(jnp.zeros(2)), c=sm.State(0.0)).load(old, strict=False)
    header, *rows = Cells(report._repr_html_()).rows
    assert header == ["path", "what", "here", "old"]
    assert [tuple(row) for row in rows] == [tuple(row) for row in report]
    assert rows and "<b>" not in report._repr_html_().replace("&lt;b&gt;", "")
    # A context is printed, or shown by treescope, which takes an object's own HTML before that.
    assert not hasattr(new, "_repr_html_")


def shown(x, **kwargs):
    treescope = pytest.importorskip("treescope")
    text = treescope.render_to_text(x, **kwargs)
    internal = (
        r"data=|rest=|handle=|Handle\(|struct=|_options|_specs|_handles|<statemap|object at 0x"
    )
    assert not re.search(internal, re.sub("<function [^>]*>", "", text)), text
    assert treescope.render_to_html(x)
    return text


def test_a_state():
    text = shown(sm.ParamState(jnp.arange(3.0), name="w", tag="<b>"))
    assert text.splitlines() == [
        "ParamState(", "  <jax.Array([0., 1., 2.], dtype=float32)>,", "  name='w',",
        "  tag='<b>',", ")",
    ]  # fmt: skip
    assert shown(sm.State({"x": 1.0})).startswith("State({'x': <jax.Array(1., dtype=float32)>})")
    layer = shown(sm.ParamState(eqx.nn.MLP(2, 2, 2, 1, key=jr.key(0))))
    assert "activation=jax.nn.relu" in layer and "weight=<jax.Array float32(2, 2)" in layer
    assert "impl='threefry2x32'" in shown(sm.RandomState(0))
    emptied = jax.tree.map(lambda _: None, sm.ParamState(jnp.ones(3)))
    assert "ParamState(None" in shown(emptied)


def test_a_model_with_handles():
    model, states = sm.make_with_states(Layered)(key=jr.key(0))
    text = shown(model)
    for path, shape in (("lif.weight", "f32[2,3]"), ("net.layers.0.bias", "f32[4]")):
        assert re.search(rf"ParamState\(\s*handle of `{path}`,\s*{re.escape(shape)}", text)
    assert shown(model.lif.v).strip() == "ShortTermState(handle of `lif.v`, f32[2])"
    whole = sm.make_with_states(lambda: {"net": sm.ParamState(eqx.nn.Linear(2, 3, key=jr.key(0)))})
    assert "handle of `net`, Linear(" in " ".join(shown(whole()[0]).split())
    before = Layered(key=jr.key(0))
    assert "v=ShortTermState(<jax.Array([0., 0.], dtype=float32)>)" in shown(before.lif)
    assert "net" in shown(before) and shown(sm.make_with_states(Nested)(key=jr.key(0))[0])
    assert len(states) == 7


def test_a_context():
    model, states, axes = sm.vmap2_new_states(Layered, key=jr.key(0), axis_size=5)
    text = shown(states)
    assert text.startswith("States(\n")
    assert re.findall(r"^  (\S+?)=", text, re.M) == re.findall(r"^  (\S+?)=", repr(states), re.M)
    assert re.search(r"lif\.v=ShortTermState\(\s*<jax\.Array float32\(5, 2\)", text)
    skeleton = shown(jax.eval_shape(lambda: states))
    assert "lif.weight=ParamState(f32[5,2,3])" in skeleton
    assert shown(sm.States()).strip() == "States()"
    assert shown({"a": (states, model)})
    assert shown(axes).startswith("MemberAxes(") and "0: [lif.rng, lif.v" in shown(axes)
    jax.jit(lambda s: shown(s) and None)(states)  # tracers


def test_a_donated_context_says_so():
    treescope = pytest.importorskip("treescope")
    states = sm.States(a=sm.State(jnp.zeros(3)))
    step = sm.vmap2(lambda s, x: (x, s.set("a", s["a"] + x)), state_in_axes={0: ...}, donate=True)
    step(states, jnp.ones(3))
    for show in (repr, treescope.render_to_text):
        with pytest.raises(sm.DonatedStatesError, match="was given to a mapping with"):
            show(states)


def test_where_the_parts_are_found():
    """What treescope's buttons copy gives the part that they stand at."""
    rendering_parts = pytest.importorskip("treescope.rendering_parts")

    found = []

    def render(value, *, path=None):
        found.append((path, value))
        return rendering_parts.text("...")

    def check(x):
        found.clear()
        x.__treescope_repr__("", render)
        assert found and all(path is not None for path, _ in found)
        return [(eval(f"x{path}", {"x": x}), value) for path, value in found]

    model, states, axes = sm.vmap2_new_states(
        LIF, dict(n_in=3, n_out=2), key=jr.key(0), axis_size=5
    )
    for part, value in check(states):
        if not jnp.issubdtype(part.dtype, jax.dtypes.prng_key):  # shown as it is stored
            np.testing.assert_array_equal(part, value)
    assert check(sm.State(3.0))[0][0] == 3.0
    step = sm.vmap2(model, in_axes=None, state_in_axes=axes)
    assert [a is b for a, b in check(step)] == [True]
    population, _ = sm.Map(LIF, init_map_size=3).init_all_states(n_in=3, n_out=2, key=jr.key(0))
    assert [a is b for a, b in check(population)] == [True, True]
    x = sm.States({"a.b": sm.State(1.0), "it's": sm.State(2.0)})
    assert [float(a) for a, _ in check(x)] == [1.0, 2.0]
    found.clear()
    states.__treescope_repr__(None, render)
    assert [path for path, _ in found] == [None] * 3


def test_mappings_plans_and_reports():
    text = shown(odd_plan())
    rows = [line.strip() for line in repr(odd_plan()).splitlines()]
    assert text.startswith("Plan(\n") and all(row in text for row in rows)
    model, states, axes = sm.vmap2_new_states(
        LIF, dict(n_in=3, n_out=2), key=jr.key(0), axis_size=5
    )
    step = sm.vmap2(model, in_axes=None, state_in_axes=axes, state_out_axes={sm.Restore: "v"})
    text = shown(step)
    assert text.startswith("StatefulMapping(\n  LIF(\n") and "  in_axes=None," in text
    assert "state_out_axes={Restore" in text
    assert shown(sm.pmap2(LIF.__call__)).startswith("StatefulMapping(")
    _, report = states.load(states)
    assert all(row.path in shown(report) for row in report)
    population = sm.Map(LIF, init_map_size=3)
    assert shown(population).strip() == "Map(tests.models.LIF, 3 members, 'vmap', no states yet)"
    population, _ = population.init_all_states(n_in=3, n_out=2, key=jr.key(0))
    text = shown(population)
    assert text.startswith("Map(\n  LIF(\n") and "  3 members,\n" in text and "MemberAxes(" in text


def test_treescope_is_not_imported():
    program = (
        "import sys, jax.numpy as jnp, statemap as sm\n"
        "m = sm.vmap2(lambda s, x: (x, s)); s = sm.States(a=sm.State(0.0)); m(s, jnp.ones(3))\n"
        "repr(s), repr(m), m.plan(s, jnp.ones(3))._repr_html_()\n"
        "assert 'treescope' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
