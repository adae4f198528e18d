"""A few of the fuzzer's programs; `make fuzz` runs as many as one likes."""

import pathlib
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_random_programs_are_loops_over_lanes():
    command = [sys.executable, "-m", "tests.fuzz", "100", "--seed", "1"]
    root = pathlib.Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100 programs, 0 mismatches" in done.stdout
