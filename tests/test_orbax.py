"""Checkpoints by orbax: a population saved on some devices and restored on others."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import statemap as sm

from .models import LIF


ocp = pytest.importorskip("orbax.checkpoint")

PROCESS = """
import sys
import jax, jax.numpy as jnp, jax.random as jr, numpy as np
import orbax.checkpoint as ocp
import statemap as sm
from tests.models import LIF

what, folder, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
assert jax.device_count() == count
make = lambda: sm.pmap2_new_states(LIF, dict(n_in=3, n_out=4), key=jr.key(0), axis_size=8)
xs = jnp.linspace(0.0, 1.0, 24).reshape(8, 3)

def run(model, states, axes, steps):
    step = sm.pmap2(model, state_in_axes=axes, state_out_axes=axes)
    for _ in range(steps):
        spikes, states = step(states, xs)
    return states

def put_down(states, name):
    arrays = {jax.tree_util.keystr(k): np.asarray(x) for k, x in jax.tree.leaves_with_path(states)}
    np.savez(f"{folder}/{name}.npz", **arrays)

if what == "save":
    model, states, axes = make()
    states = run(model, states, axes, 2)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(f"{folder}/checkpoint", states)
    put_down(states, "saved")
    put_down(run(model, states, axes, 3), "uninterrupted")
else:
    # A model and shapes; nothing is computed before what was saved is there.
    made = []
    def shapes_of():
        model, states, axes = make()
        made.extend([model, axes])
        return states
    shapes = jax.eval_shape(shapes_of)
    model, axes = made
    mesh = jax.make_mesh((count,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))

    def lay(axis, value):
        spec = jax.P() if axis is None else jax.P(*(None,) * axis, "devices")
        sharding = jax.NamedSharding(mesh, spec)
        laid = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        return jax.tree.map(laid, value)

    target = jax.tree.map(lay, axes.tree(shapes), shapes, is_leaf=lambda axis: axis is None)
    with ocp.StandardCheckpointer() as checkpointer:
        states = checkpointer.restore(f"{folder}/checkpoint", target)
    assert type(states) is sm.States and states._slots is shapes._slots
    assert len(states[model.v].sharding.device_set) == count
    put_down(states, f"restored{count}")
    put_down(run(model, states, axes, 3), f"continued{count}")
"""


def _process(what, folder, count):
    root = os.path.dirname(os.path.dirname(__file__))
    flags = f"--xla_force_host_platform_device_count={count}"
    env = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, what, str(folder), str(count)],
        capture_output=True,
        text=True,
        cwd=root,
        env=env,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_saved_on_four_devices_and_restored_on_others(tmp_path):
    _process("save", tmp_path, 4)
    load = lambda name: dict(np.load(tmp_path / f"{name}.npz"))
    for count in (2, 8):
        _process("restore", tmp_path, count)
        saved, restored = load("saved"), load(f"restored{count}")
        assert saved.keys() == restored.keys() and len(saved) == 3
        for key in saved:
            np.testing.assert_array_equal(saved[key], restored[key])
        expected, continued = load("uninterrupted"), load(f"continued{count}")
        for key, x in expected.items():
            if x.dtype.kind == "u":  # streams
                np.testing.assert_array_equal(x, continued[key])
            np.testing.assert_allclose(x, continued[key], rtol=1e-5, atol=1e-6)


@pytest.fixture
def saved(tmp_path):
    model, states, axes = sm.vmap2_new_states(
        LIF, dict(n_in=3, n_out=4), key=jr.key(0), axis_size=8
    )
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", states)
    return tmp_path / "checkpoint", states


def _laid(tree):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def test_targets_of_shapes(saved):
    path, states = saved
    target = _laid(jax.eval_shape(lambda: states))
    with ocp.StandardCheckpointer() as checkpointer:
        assert checkpointer.restore(path, target) == states
    with ocp.CheckpointManager(path.parent / "steps") as manager:
        manager.save(3, args=ocp.args.StandardSave(states))
        manager.wait_until_finished()
        assert manager.restore(3, args=ocp.args.StandardRestore(target)) == states
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path.parent / "tree", states)
        given = ocp.checkpoint_utils.construct_restore_args(target)
        args = ocp.args.PyTreeRestore(item=target, restore_args=given)
        assert checkpointer.restore(path.parent / "tree", args=args) == states


def test_a_changed_model(saved):
    """What was saved is read without the old model, and loaded by path."""
    path, states = saved
    with ocp.StandardCheckpointer() as checkpointer:
        old = checkpointer.restore(path, _laid(dict(checkpointer.metadata(path).item_metadata)))
    zeros = jax.tree.map(jnp.zeros_like, states)
    assert zeros.load(old)[0] == states
    added = zeros.merge(sm.States(extra=sm.ParamState(1.0)))
    new, report = added.load(old, strict=False)
    assert new["v"].tolist() == states["v"].tolist() and report.added == ("extra",)
