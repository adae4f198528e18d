"""Scripts written for brainstate, unchanged."""

import subprocess
import sys
import textwrap

import pytest

from statemap import compat


SCRIPT = """
import sys
import brainstate
import brainstate as bst
import jax.numpy as jnp
from brainstate.transform import vmap2
from brainstate.util.filter import OfType

counter = brainstate.ShortTermState(jnp.zeros(3))

def accumulate(x):
    counter.value = counter.value + x
    return counter.value

class Net(bst.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = bst.ParamState(jnp.ones(2))
    def update(self, x):
        return (self.w.value * x).sum() * bst.environ.get_dt()

if __name__ == "__main__":
    mapped = vmap2(accumulate, state_in_axes={0: OfType(bst.ShortTermState)})
    print(mapped(jnp.arange(3.0)), sys.argv[1:], bst.__name__)
    with bst.environ.context(dt=0.5):
        print(bst.transform.for_loop(Net(), jnp.ones((2, 2))))
"""


def run(*args, cwd):
    command = [sys.executable, "-W", "error", *args]
    return subprocess.run(command, cwd=cwd, text=True, capture_output=True)


@pytest.fixture
def script(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


def test_a_script(script):
    done = run("-m", "statemap.compat", "script.py", "--n", "3", cwd=script)
    assert done.stdout.split("\n")[:2] == ["[0. 1. 2.] ['--n', '3'] statemap.compat", "[1. 1.]"]
    assert not done.stderr


def test_a_module(script):
    done = run("-m", "statemap.compat", "-m", "script", cwd=script)
    assert done.stdout.startswith("[0. 1. 2.] []") and not done.returncode


def test_the_policy_of_newer_code(script):
    (script / "auto.py").write_text(
        "import brainstate, jax.numpy as jnp\n"
        "cell = brainstate.ShortTermState(jnp.zeros(2))\n"
        "def add(x):\n    cell.value = cell.value + x\n"
        "brainstate.transform.vmap2(add)(jnp.arange(2.0))\n"
        "print(cell.value)\n"
    )
    done = run("-m", "statemap.compat", "--policy", "auto", "auto.py", cwd=script)
    assert done.stdout == "[0. 1.]\n"
    done = run("-m", "statemap.compat", "auto.py", cwd=script)
    assert "set_default_policy('auto')" in done.stderr
    done = run("-m", "statemap.compat", "--policy", "automatic", "auto.py", cwd=script)
    assert "is one of 'raise', 'warn', 'ignore', 'auto'" in done.stderr


def test_what_is_missing(script):
    done = run("-m", "statemap.compat", "nothing.py", cwd=script)
    assert done.returncode == 2 and "there is no file nothing.py" in done.stderr
    (script / "other.py").write_text("import brainstate.no_such_module")
    done = run("-m", "statemap.compat", "other.py", cwd=script)
    assert "No module named 'brainstate.no_such_module'" in done.stderr


def test_install(script):
    program = """
    import sys, types
    import statemap.compat
    statemap.compat.install()
    statemap.compat.install()  # a second time
    import brainstate.transform, brainstate.nn
    assert brainstate.transform is statemap.compat.transform
    assert brainstate.ShortTermState is statemap.compat.ShortTermState
    statemap.compat.uninstall()
    assert "brainstate" not in sys.modules and "brainstate.nn" not in sys.modules
    sys.modules["brainstate"] = types.ModuleType("brainstate")
    try:
        statemap.compat.install()
    except RuntimeError as error:
        print(error)
    """
    done = run("-c", textwrap.dedent(program), cwd=script)
    assert done.stdout.startswith("brainstate itself is imported already") and not done.stderr


def test_old_names():
    assert compat.compile is compat.augment is compat.transform
    assert compat.__version__ == "0.5.4"
