"""The examples, run as a user runs them: a process each, in an empty directory."""

import os
import pathlib
import re
import socket
import subprocess
import sys

import pytest


EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
PNG = b"\x89PNG"

pytestmark = pytest.mark.slow


def start(name, *args, cwd, **variables):
    """An example in a process that sees nothing of the tests' devices and settings of JAX."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS" and k[:4] != "JAX_"}
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), *args],
        cwd=cwd,
        env=environment | {"JAX_PLATFORMS": "cpu"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes):
    """What each process prints, once all have ended well. However long that takes: no limit tells
    a busy machine from an example that hangs.
    """
    try:
        printed = [process.communicate() for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (out, err) in zip(processes, printed):
        assert process.returncode == 0, out + err[-3000:]
    return [out for out, _ in printed]


def test_digits_ensemble(tmp_path):
    [out] = finish(start("digits_ensemble.py", "--quick", cwd=tmp_path))
    header, *members, vote = out.splitlines()
    assert header.split() == ["member", "trained", "on", "held", "out"]
    assert [line.split()[0] for line in members] == [str(i) for i in range(1, 9)]
    assert float(vote.split()[-1].rstrip("%")) > 80
    assert (tmp_path / "digits_ensemble.png").read_bytes()[:4] == PNG


def test_hodgkin_huxley_population(tmp_path):
    args = "--quick", "--out", "hh.png"
    [out] = finish(start("hodgkin_huxley_population.py", *args, cwd=tmp_path))
    table = re.findall(r"^ +(\S+) +(\S+) Hz +(\S+) Hz$", out, re.MULTILINE)
    assert len(table) == 6
    assert all(abs(float(ours) - float(theirs)) < 0.01 for _, ours, theirs in table)
    assert float(table[0][1]) == 0 and float(table[-1][1]) > 100
    assert "vmap2, pmap2 over 8 devices, vmap2 in chunks of 64 agree:" in out
    assert "equal to the bit" in out
    assert (tmp_path / "hh.png").read_bytes()[:4] == PNG


def test_spiking_trials(tmp_path):
    [out] = finish(start("spiking_trials.py", "--quick", cwd=tmp_path))
    table = re.findall(r"^(one stream|own streams) +scan (\w+) +(\d+) ", out, re.MULTILINE)
    spikes = {(streams, form): int(n) for streams, form, n in table}
    assert len(spikes) == 4
    assert spikes["one stream", "outside"] != spikes["one stream", "inside"]
    assert len({n for key, n in spikes.items() if key != ("one stream", "outside")}) == 1
    assert "the same spikes in both forms, to the bit." in out
    assert (tmp_path / "spiking_trials.png").read_bytes()[:4] == PNG


def test_environments(tmp_path):
    [out] = finish(start("environments.py", "--quick", "--out", "poles.png", cwd=tmp_path))
    counts, lengths = out.splitlines()
    episodes, steps = (int(n.replace(",", "")) for n in re.findall(r"[\d,]+\d", counts))
    # Every time step is one of an episode that is over or of one that goes on.
    assert 80 * 32 * 1000 - 1000 * 500 < steps <= 80 * 32 * 1000
    assert episodes > 1000
    first, last = map(float, re.findall(r"(\S+) s ", lengths + " "))
    assert last > 3 * first
    assert (tmp_path / "poles.png").read_bytes()[:4] == PNG


def test_digits_ensemble_in_plain_jax(tmp_path):
    [out] = finish(start("digits_ensemble_plain.py", "--quick", cwd=tmp_path))
    *_, vote, verdict = out.splitlines()
    assert float(vote.split()[-1].rstrip("%")) > 80
    assert "losses" in verdict and float(re.search(r"(\S+) apart", verdict)[1]) < 0.01


def test_kalman_customers(tmp_path):
    [out] = finish(start("kalman_customers.py", "--quick", cwd=tmp_path))
    assert re.search(r"^100,000 customers at first", out)
    # It grew, and gave places back.
    assert len(re.search(r"^Places for (.*)\.$", out, re.MULTILINE)[1].split(", ")) > 2
    assert "The second half, from the checkpoint: equal to the bit." in out
    assert "100 customers by NumPy:" in out
    assert (tmp_path / "kalman_customers.png").read_bytes()[:4] == PNG


def test_kalman_customers_in_plain_jax(tmp_path):
    [out] = finish(start("kalman_customers_plain.py", "--quick", cwd=tmp_path))
    assert "Plain JAX and statemap agree" in out


def test_population_training(tmp_path):
    [out] = finish(start("population_training.py", "--quick", cwd=tmp_path))
    accuracies = re.findall(r"^(?:selection|fixed) +(\S+)% +(\S+)%$", out, re.MULTILINE)
    (ours, _), (theirs, _) = accuracies
    assert float(ours) > float(theirs)
    assert "Rounds on 1 and on 8 devices: losses" in out
    assert (tmp_path / "population_training.png").read_bytes()[:4] == PNG


def test_multiprocess(tmp_path):
    [out] = finish(start("multiprocess.py", cwd=tmp_path))
    first, second, verdict = out.splitlines()
    assert "process 0 of 2: neurons 0 to 7 of 16, on 4 of 8 devices" in first
    assert "process 1 of 2: neurons 8 to 15 of 16, on 4 of 8 devices" in second
    assert "equal to the bit" in first and "equal to the bit" in second
    assert verdict == "2 processes and one agree."


def test_multiprocess_as_slurm_starts_it(tmp_path):
    step = {"SLURM_JOB_ID": _free_job(), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    tasks = [
        start(
            *("multiprocess.py", "--auto"),
            cwd=tmp_path,
            **(step | {"SLURM_PROCID": i, "SLURM_LOCALID": i, "JAX_NUM_CPU_DEVICES": "2"}),
        )
        for i in "01"
    ]
    for i, out in enumerate(finish(*tasks)):
        assert f"process {i} of 2: neurons {4 * i} to {4 * i + 3} of 8" in out
        assert "on 2 of 4 devices" in out and "equal to the bit" in out


def _free_job():
    """The number of a job whose port, which JAX derives from it, is free."""
    for job in range(os.getpid(), os.getpid() + 4096):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", 65536 - 4096 + job % 4096)):
                return str(job)
    raise RuntimeError("no free port")
