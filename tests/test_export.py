"""Exported functions with contexts in and out, loaded in another process."""

import os
import subprocess
import sys
import textwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from jax import export

import statemap as sm

from .models import LIF


pytest.importorskip("flatbuffers")  # which `jax.export` needs


def _there_and_back(fn, *args):
    return export.deserialize(export.export(jax.jit(fn))(*args).serialize())


def _elsewhere(script, *args):
    """What a new process prints."""
    root = os.path.dirname(os.path.dirname(__file__))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, args)],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_model():
    model, states = sm.make_with_states(LIF)(3, 4, key=jr.key(0))
    back = _there_and_back(model, states, jnp.ones(3))
    out, new = back.call(states, jnp.ones(3))
    expected = jax.jit(model)(states, jnp.ones(3))
    assert (out == expected[0]).all() and new == expected[1]
    assert new._slots is states._slots and (new[model.v] == expected[1][model.v]).all()


@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}])
def test_a_population(options):
    model, states, axes = sm.vmap2_new_states(
        LIF, dict(n_in=3, n_out=4), key=jr.key(0), axis_size=8
    )
    step = sm.vmap2(model, state_in_axes=axes, state_out_axes=axes, **options)
    xs = jnp.ones((8, 3))
    back = _there_and_back(step, states, xs)
    here, there = states, states
    for _ in range(3):
        spikes, here = jax.jit(step)(here, xs)
        spikes_there, there = back.call(there, xs)
        assert (spikes == spikes_there).all() and here == there


def test_shared_streams_and_moved_states():
    states = sm.States(rng=sm.RandomState(0), v=sm.ShortTermState(jnp.zeros((4, 2))))
    draw = lambda s, x: (lambda n, s: (n + x, s.set("v", s["v"] + n)))(
        *sm.random.normal(s, "rng", (2,))
    )
    step = sm.vmap2(
        draw, state_in_axes={0: sm.ShortTermState}, state_out_axes={1: sm.ShortTermState}
    )
    back = _there_and_back(step, states, jnp.zeros(4))
    out, new = back.call(states, jnp.zeros(4))
    expected = jax.jit(step)(states, jnp.zeros(4))
    assert (out == expected[0]).all() and new == expected[1] and new["v"].shape == (2, 4)


def test_another_process(tmp_path):
    """It knows the states from the file alone."""
    model, states, axes = sm.vmap2_new_states(
        LIF, dict(n_in=3, n_out=4), key=jr.key(0), axis_size=8
    )
    step = sm.vmap2(model, state_in_axes=axes, state_out_axes=axes)
    exported = export.export(jax.jit(step))(states, jnp.ones((8, 3)))
    (tmp_path / "step").write_bytes(exported.serialize())
    script = """
        import sys, jax.numpy as jnp, jax.random as jr, statemap as sm
        from jax import export
        from tests.models import LIF

        step = export.deserialize(open(sys.argv[1], "rb").read())
        make = lambda: sm.vmap2_new_states(LIF, dict(n_in=3, n_out=4), key=jr.key(0), axis_size=8)
        model, states, axes = make()
        for _ in range(2):
            _, states = step.call(states, jnp.ones((8, 3)))
        print([float(x).hex() for x in states[model.v].ravel()])
    """
    for _ in range(2):
        _, states = exported.call(states, jnp.ones((8, 3)))
    expected = [float(x).hex() for x in states[model.v].ravel()]
    assert _elsewhere(script, tmp_path / "step").strip() == str(expected)


def test_bytes_are_the_same_in_every_process():
    script = """
        from statemap._node import _to_json
        import jax.numpy as jnp, jax.random as jr, statemap as sm
        from tests.models import LIF
        _, states = sm.make_with_states(LIF)(3, 4, key=jr.key(0))
        print(_to_json(states._slots).decode())
    """
    first = _elsewhere(script)
    assert first == _elsewhere(script) and '["statemap", "ParamState"]' in first


KEYS = sm.States({"a": [sm.ParamState(1.0, name="n", tag="t"), sm.State(2)], "b": {3: sm.State(0)}})


def test_paths_names_and_ties():
    back = _there_and_back(lambda s: s, KEYS)
    new = back.call(KEYS)
    assert new == KEYS and new["n"] == 1.0 and new[("b", 3)] == 0
    shared = sm.State(jnp.ones(2))
    model, tied = sm.make_with_states(lambda: {"a": shared, "b": shared})()
    assert _there_and_back(lambda s: s, tied).call(tied)[model["b"]].tolist() == [1.0, 1.0]


def test_other_states_are_refused():
    back = _there_and_back(lambda s: s, KEYS)
    with pytest.raises(ValueError, match="must have the same pytree structure"):
        back.call(sm.States(v=sm.State(1.0)))


class Own(sm.State):
    """A kind of one's own, with a static field."""

    table: object = eqx.field(static=True, default=None)

    def __init__(self, value, table=None):
        super().__init__(value)
        self.table = table

    class Inner(sm.ParamState):
        pass


def _export(state):
    states = sm.States({"deep": {"own": state}})
    return export.export(jax.jit(lambda s: s))(states).serialize()


def test_kinds_of_ones_own():
    states = sm.States({"own": Own(jnp.ones(2), 0.25), "inner": Own.Inner(1.0)})
    assert _there_and_back(lambda s: s, states).call(states) == states


@pytest.mark.parametrize("static", [jnp.sin, (1, 2), print, 1j])
def test_static_fields_that_are_not_plain(static):
    with pytest.raises(TypeError, match=r"`deep.own` can't be exported: its table, .* is no str"):
        _export(Own(jnp.ones(2), static))


def test_kinds_that_nobody_finds(monkeypatch):
    class Local(sm.State):
        pass

    with pytest.raises(TypeError, match="`deep.own`.*`.*Local` is defined in a function"):
        _export(Local(1.0))
    saved = _export(Own.Inner(1.0))
    monkeypatch.setattr(Own, "Inner", int)
    with pytest.raises(ValueError, match="`deep.own` of the kind .*Own.Inner`, which is no kind"):
        export.deserialize(saved)
    monkeypatch.delattr(Own, "Inner")
    with pytest.raises(ValueError, match="`deep.own` of the kind .*Own.Inner`, which this proc"):
        export.deserialize(saved)


def test_keys_that_are_not_plain():
    states = sm.States({("a", "b"): sm.State(1.0)})
    with pytest.raises(TypeError, match=r"can't be exported: its key \('a', 'b'\)"):
        export.export(jax.jit(lambda s: s))(states).serialize()
