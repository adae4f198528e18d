"""Several processes, each with devices of its own, over the loopback."""

import os
import socket
import subprocess
import sys

import pytest


pytestmark = pytest.mark.slow

WORKER = """
import sys
import jax

jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import jax.numpy as jnp
import numpy as np

import statemap as sm

assert jax.device_count() == 4 and jax.process_count() == 2


def step(states, x):
    noise, states = sm.random.uniform(states, "rng")
    states = states.set("count", states["count"] + 1)
    states = states.set("any", states["any"] | (x > 6))
    states = states.set("max", jnp.maximum(states["max"], noise))
    hidden = states["hidden"] + x
    return hidden, states.update({"hidden": hidden, "mean": 0.5 * states["mean"] + x / 7})


states = sm.States(
    count=sm.LongTermState(3),
    any=sm.LongTermState(False),
    max=sm.LongTermState(0.0),
    mean=sm.LongTermState(0.0),
    hidden=sm.HiddenState(0.5),
    rng=sm.RandomState(0),
)
at = lambda name: lambda path, state: path == (name,)
rules = {
    sm.Reduce("changes"): at("count"),
    sm.Reduce("any"): at("any"),
    sm.Reduce("max"): at("max"),
    sm.Reduce("mean"): at("mean"),
    sm.Restore: sm.HiddenState,
}
xs = np.arange(8.0, dtype=np.float32)
everywhere = sm.pmap2(step, state_out_axes=rules)
here = sm.vmap2(step, state_out_axes=rules)
mine, alone = states, states
for _ in range(2):
    _, mine = everywhere(mine, xs)
    _, alone = here(alone, xs)
for name in ("count", "any", "max", "hidden"):
    np.testing.assert_array_equal(np.asarray(mine[name]), np.asarray(alone[name]), err_msg=name)
np.testing.assert_allclose(np.asarray(mine["mean"]), np.asarray(alone["mean"]), rtol=1e-6)
assert mine["count"] == 3 + 16
print("agreed")
"""


def test_rules_agree_over_processes(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # any free port
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    (tmp_path / "worker.py").write_text(WORKER)
    settings = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    environment = {k: v for k, v in os.environ.items() if k[:4] != "JAX_"} | settings
    workers = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "worker.py"), address, str(i)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    printed = [worker.communicate() for worker in workers]
    for worker, (out, err) in zip(workers, printed):
        assert worker.returncode == 0 and "agreed" in out, out + err[-3000:]
