"""`install(layers="brainstate")` and back."""

import subprocess
import sys
import threading
import types

import brainstate
import jax.numpy as jnp
import pytest

import statemap as sm
from statemap import bridge, compat
from statemap.compat import __main__, _frames


def present():
    """What brainstate has, by name."""
    owners = [brainstate._state, brainstate.State, brainstate.random.RandomState]
    owners += [brainstate.transform, brainstate.environ, type(brainstate._state.TRACE_CONTEXT)]
    owners += [m for name, m in sorted(sys.modules.items()) if name.startswith("brainstate.")]
    return [dict(vars(owner)) for owner in owners], brainstate.State.__bases__


def test_uninstall_puts_all_back():
    before, errors = present(), compat.BatchAxisError.__bases__
    compat.install(layers="brainstate")
    compat.install(layers="brainstate")
    assert brainstate.transform.vmap2 is compat.transform.vmap2
    assert brainstate.nn._collective_ops.vmap_new_states is compat.transform.vmap_new_states
    assert present() != before
    compat.uninstall()
    compat.uninstall()
    assert present() == before and compat.BatchAxisError.__bases__ == errors
    assert brainstate.random.DEFAULT not in _frames.streams
    state = brainstate.ShortTermState(jnp.zeros(2))
    brainstate.transform.jit(lambda: setattr(state, "value", state.value + 1))()
    assert not _frames.is_cell(state) and state.value.sum() == 2


def test_the_shim_alone_is_installed_before_and_after():
    compat.install(layers="brainstate")
    with pytest.raises(RuntimeError, match="imported already"):
        compat.install()
    assert brainstate.transform.jit is compat.transform.jit
    compat.uninstall()


def test_what_fails_leaves_nothing(monkeypatch):
    from statemap.compat.layers import _private

    before = present()
    monkeypatch.setattr(_private, "errors", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError, match="division"):
        compat.install(layers="brainstate")
    assert present() == before


def test_other_layers():
    with pytest.raises(ValueError, match="`layers` is 'brainstate' or None, not 'flax'"):
        compat.install(layers="flax")


def test_without_brainstate(monkeypatch):
    monkeypatch.setitem(sys.modules, "brainstate", None)
    with pytest.raises(ImportError, match=r"none is installed: `pip install 'statemap\[brainstate"):
        compat.install(layers="brainstate")


def test_the_command_without_brainstate(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "brainstate", None)
    monkeypatch.setattr(sys, "argv", ["statemap.compat", "--layers", "brainstate", "script.py"])
    with pytest.raises(SystemExit, match="2"):
        __main__.main()
    assert "pip install 'statemap[brainstate]'" in capsys.readouterr().err


def test_what_another_package_has_is_not_asked(monkeypatch):
    class Asked:
        def __getattribute__(self, name):
            raise AssertionError(name)

    module = types.ModuleType("other")
    module.deprecated, module.jit = Asked(), brainstate.transform.jit
    monkeypatch.setitem(sys.modules, "other", module)
    compat.install(layers="brainstate")
    assert module.jit is compat.transform.jit
    compat.uninstall()
    assert module.jit is brainstate.transform.jit is not compat.transform.jit


def test_what_a_version_lacks(monkeypatch):
    monkeypatch.delattr(brainstate.State, "_write_value")
    with pytest.raises(ImportError, match=r"has no `brainstate\._state:State\._write_value`"):
        compat.install(layers="brainstate")
    assert not _frames.is_cell(brainstate.ShortTermState(0.0))


def test_errors_are_brainstates(layers):
    shared = layers.ShortTermState(jnp.array(0.0))
    step = layers.transform.vmap2(
        lambda x: setattr(shared, "value", x), unexpected_out_state_mapping="raise"
    )
    with pytest.raises(layers._error.BatchAxisError, match="depends on the lane"):
        step(jnp.arange(3.0))
    with pytest.raises(layers._error.BrainStateError, match="depends on the lane"):
        step(jnp.arange(3.0))


def test_a_program_is_for_the_settings_that_it_read(layers):
    runs = []

    @layers.transform.jit
    def step(x):
        runs.append(x)
        return x * layers.environ.get("dt")

    for dt in 1.0, 2.0, 1.0, 2.0:
        with layers.environ.context(dt=dt, unused=len(runs)):
            assert step(3.0) == 3 * dt
    assert len(runs) == 2
    mapped = layers.transform.vmap2(lambda x: x * layers.environ.get_dt())
    for dt in 1.0, 2.0:
        with layers.environ.context(dt=dt):
            assert mapped(jnp.arange(2.0)).tolist() == [0, dt]


def test_threads_have_frames_of_their_own(layers):
    state, seen = layers.ShortTermState(jnp.array(1.0)), []

    def step():
        state.value = state.value + 1
        other = threading.Thread(target=lambda: seen.append(state.value))
        other.start()
        other.join()

    layers.transform.jit(step)()
    assert float(seen[0]) == 1 and state.value == 2


def test_the_core_takes_what_is_not_foreign(layers):
    net = layers.nn.Linear(3, 2)
    out, _ = sm.vmap2(lambda states, x: (net(x), states))(sm.States(), jnp.ones((4, 3)))
    assert out.shape == (4, 2)


def test_the_bridge_is_for_brainstate_alone(layers):
    net = layers.nn.Linear(3, 2)
    with pytest.raises(RuntimeError, match=r"compat\.to_functional\(module\)"):
        bridge.brainstate(net)
    compat.uninstall()
    net, states = bridge.brainstate(brainstate.nn.Linear(3, 2))
    assert net(states, jnp.ones(3))[0].shape == (2,)


def test_a_model_as_a_function(layers):
    net = layers.nn.Linear(3, 2)
    step, states = compat.to_functional(net)
    out, after = step(states, jnp.ones(3))
    assert (out == net(jnp.ones(3))).all() and len(after) == 2
    assert type(after["weight"]) is dict and isinstance(
        dict(after.items())["weight",], sm.ParamState
    )


SCRIPT = """
import sys, brainstate, jax.numpy as jnp
assert sys.argv == [__file__, "--n", "3"]
last = brainstate.ShortTermState(jnp.array(0.0))
brainstate.transform.vmap2(lambda x: setattr(last, "value", x))(jnp.arange(3.0))
print(brainstate.transform.vmap2.__module__, last.value, brainstate.nn.Linear.__module__)
"""


def test_the_command(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "statemap.compat", "--layers", "brainstate", str(script)]
    done = subprocess.run([*command, "--n", "3"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        *("statemap.compat.transform._maps", "[0.", "1.", "2.]", "brainstate.nn")
    ]
