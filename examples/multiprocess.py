"""A population over two processes with four CPU devices each, checked against one process.

    python examples/multiprocess.py

starts the two on this machine, where they talk over the loopback, and shows

- that `jax.distributed` is the engine: once it is initialised, the devices of all processes make
  one mesh, and `pmap2_new_states` and `pmap2` lay the lanes over it as over any other;
- an array of which each process holds a part, made and compared without moving it;
- a collective over all lanes, wherever they are, and a state that all of them share.

Every process runs this same script. Under SLURM and on TPU pods they find each other:

    srun --ntasks=2 python examples/multiprocess.py --auto

Anywhere else, tell each of them which one it is and where the first can be reached:

    python examples/multiprocess.py --coordinator host0:1234 --num-processes 2 --process-id 0
    python examples/multiprocess.py --coordinator host0:1234 --num-processes 2 --process-id 1
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

import statemap as sm


PROCESSES, DEVICES = 2, 4  # that are started without arguments
LANES = 2  # on each device
STEPS = 20
INPUTS = 3
TIMEOUT = 120.0  # seconds


class Neuron(eqx.Module):
    """A leaky neuron, inhibited by the mean rate of the whole population."""

    weight: sm.ParamState[Float[Array, "inputs"]] = sm.field(lambda key: jr.uniform(key, (INPUTS,)))
    v: sm.ShortTermState[Float[Array, ""]] = sm.field(0.0)
    rate: sm.NonBatchState[Float[Array, ""]] = sm.field(0.0)  # one for all neurons
    rng: sm.RandomState = sm.field()

    def __call__(self, states: sm.States, x: Float[Array, "inputs"]):
        noise, states = sm.random.normal(states, self.rng)
        inhibition = states[self.rate]
        v = 0.9 * states[self.v] + states[self.weight] @ x - inhibition + 0.1 * noise
        spike = v > 1.0
        rate = jax.lax.pmean(spike.astype(v.dtype), "neurons")
        states = states.set(self.rate, 0.8 * inhibition + 0.2 * rate)
        return {"spike": spike, "noise": noise}, states.set(self.v, jnp.where(spike, 0.0, v))


def work():
    """What each process does: its part of the population, and all of it, to compare."""
    n = LANES * jax.device_count()  # of the devices of all processes
    xs = np.random.default_rng(0).random((STEPS, n, INPUTS), np.float32)

    model, states, axes = sm.pmap2_new_states(Neuron, key=0, axis_size=n)
    step = sm.pmap2(model, "neurons", state_in_axes=axes, state_out_axes=axes)
    over_all = states[model.v].sharding

    alone, known, axes = sm.vmap2_new_states(Neuron, key=0, axis_size=n)
    step_alone = sm.vmap2(alone, axis_name="neurons", state_in_axes=axes, state_out_axes=axes)

    difference = 0.0
    for x in xs:
        # A process gives its own neurons' input. From a file, it would read no more than that.
        part = jax.make_array_from_callback(x.shape, over_all, x.__getitem__)
        out, states = step(states, part)
        expected, known = step_alone(known, x)
        exact = [(out, expected), (states.select(sm.RandomState), known.select(sm.RandomState))]
        if any(compare(ours, theirs) for ours, theirs in exact):
            sys.exit(f"Process {jax.process_index()}: random draws or spikes differ.")
        difference = max(difference, compare(states, known))
    if not difference < 1e-5:
        sys.exit(f"Process {jax.process_index()}: the states differ by {difference:.2g}.")

    parts = sorted(shard.index[0].indices(n) for shard in states[model.v].addressable_shards)
    # What all lanes share is on every process, and can be read as it is.
    print(
        f"process {jax.process_index()} of {jax.process_count()}: neurons {parts[0][0]} to "
        f"{parts[-1][1] - 1} of {n}, on {jax.local_device_count()} of {jax.device_count()} "
        f"devices; mean rate {states[model.rate]:.3f}; draws and spikes equal to the bit, "
        f"states at most {difference:.1g} apart"
    )


def compare(ours, theirs):
    """The largest difference between what this process holds of some arrays, and the whole."""
    differences = [0.0]
    for mine, whole in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        for shard in mine.addressable_shards:
            a, b = np.asarray(shard.data, float), np.asarray(whole, float)[shard.index]
            differences.append(np.max(np.abs(a - b)))
    return np.max(differences)


def launch():
    """Starts the processes on this machine, waits for them, and tells what they found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # any free port
        port = probe.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, __file__, "--coordinator", f"127.0.0.1:{port}"]
    command += ["--num-processes", str(PROCESSES), "--process-id"]

    workers, outputs, errors = [], [], []
    try:
        for i in range(PROCESSES):
            outputs.append(tempfile.TemporaryFile("w+"))
            errors.append(tempfile.TemporaryFile("w+"))
            workers.append(
                subprocess.Popen(
                    [*command, str(i)], env=environment, stdout=outputs[i], stderr=errors[i]
                )
            )
        deadline = time.monotonic() + TIMEOUT
        while any(w.poll() is None for w in workers) and time.monotonic() < deadline:
            if any(w.poll() for w in workers):  # without it, the others would wait forever
                deadline = min(deadline, time.monotonic() + 10)
            time.sleep(0.1)
    finally:
        for worker in workers:
            worker.kill()  # which does nothing to one that has ended
            worker.wait()

    for output in outputs:
        output.seek(0)
        print("".join(line for line in output if line.startswith("process")), end="")
    failed = [i for i, worker in enumerate(workers) if worker.returncode]
    for i in failed:
        errors[i].seek(0)
        print(f"process {i} wrote:\n{errors[i].read()[-3000:]}", file=sys.stderr)
    if failed:
        sys.exit(f"{len(failed)} of {PROCESSES} processes failed or took too long.")
    print(f"{PROCESSES} processes and one agree.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--auto", action="store_true", help="let JAX find the other processes")
    parser.add_argument("--coordinator", help="host:port of process 0, where it can be reached")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--process-id", type=int)
    options = parser.parse_args()

    if options.auto:
        jax.distributed.initialize()
    elif options.coordinator is None:
        return launch()
    else:
        jax.distributed.initialize(options.coordinator, options.num_processes, options.process_id)
    work()


if __name__ == "__main__":
    main()
