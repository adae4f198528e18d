"""What two type checkers say of every example: those of the README, of the documentation and of
the docstrings, and the scripts. Each line of theirs keeps its number, so that an error is shown
where it is.

What is switched off is about the code of users, or about other libraries, and says why.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest
from sybil.document import PythonDocStringDocument


pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
TAB = re.compile(r'^=== ".*"\n(?:\n|    .*\n)*', re.MULTILINE)

# By folder: the rules that pyright, which is strict, goes without.
UNTYPED = {
    # Most examples are without annotations, and JAX's functions are annotated in part.
    "reportMissingParameterType",
    "reportUnknownArgumentType",
    "reportUnknownLambdaType",
    "reportUnknownMemberType",
    "reportUnknownParameterType",
    "reportUnknownVariableType",
    # Of optax, scikit-learn and tqdm.
    "reportMissingModuleSource",
    "reportMissingTypeStubs",
}
OFF = {
    "readme": UNTYPED,
    "docstrings": UNTYPED,
    "typing": UNTYPED,
    # `__doc__` and `compiled.memory_analysis()` are None where there is none.
    "scripts": UNTYPED | {"reportOptionalMemberAccess"},
    # Besides, "How a call works" shows what is private.
    "pages": UNTYPED | {"reportOptionalMemberAccess", "reportPrivateUsage"},
}
# mypy is strict but for these.
MYPY = """
[mypy]
strict = True
follow_imports = silent
explicit_package_bases = True
# As above: examples are without annotations. What they do is checked nevertheless.
disallow_untyped_defs = False
disallow_incomplete_defs = False
disallow_untyped_calls = False
disallow_untyped_decorators = False
check_untyped_defs = True
# `runs = []`: of what, pyright infers.
# `_` for a model, and again for a context.
disable_error_code = import-untyped, var-annotated
allow_redefinition = True

[mypy-pages.*]
disable_error_code = import-untyped, var-annotated, union-attr

# Examples in plain JAX import the data and figures of those next to them.
[mypy-scripts.*]
disable_error_code = import-untyped, import-not-found, var-annotated, union-attr
warn_return_any = False
"""

# What a checker must find: in the lines that say so, and in no other.
MISTAKES = """
import jax.numpy as jnp
from jax import Array

import statemap as sm


v = sm.ShortTermState(jnp.zeros(3))
states = sm.States(v=v)
v.set("one")  # wrong
states.set(v, "one")  # wrong
states.set(v, 1.0)
states[3]  # wrong


@sm.vmap2
def step(states: sm.States, x: Array) -> tuple[Array, sm.States]:
    return x, states


step(states)  # wrong
step(states, "x")  # wrong
step(states, jnp.ones(3))[2]  # wrong
sm.vmap2(step, unexpected_out_state_mapping="shout")  # wrong
sm.vmap2(step, axes=0)  # wrong
sm.pmap2(unexpected_out_state_mapping="shout")  # wrong
sm.Map(lambda: v, init_map_size=3, behavior="smap")  # wrong
sm.random.normal(states, 3)  # wrong
step.plan(states, jnp.ones(3))["v"].axis  # wrong
"""


def _padded(blocks):
    """Blocks of code, each at its line."""
    lines = []
    for at, code in blocks:
        lines += [""] * (at - len(lines)) + code.splitlines()
    return "\n".join(lines) + "\n"


def _blocks(text, before=0):
    """The blocks of a Markdown text that begins after `before` lines."""
    for block in BLOCK.finditer(text):
        if re.search(r"skip: next if.*\s*\Z", text[: block.start()]):
            continue  # about what is installed, which a checker sees otherwise
        yield before + text[: block.start(2)].count("\n"), textwrap.dedent(block[2])


def programs():
    """Each program: where it is from, where it goes, and its text. The blocks of a page are one,
    as they are when they run; those of a tab, and of a docstring, are one by themselves.
    """
    for source in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = source.read_text()
        name = source.relative_to(ROOT).with_suffix("").as_posix()
        folder = "readme" if name == "README" else "pages"
        for i, tab in enumerate(TAB.finditer(text)):
            before = text[: tab.start()].count("\n")
            yield source, f"{folder}/{name}_{i}.py", _padded(_blocks(tab[0], before))
        rest = TAB.sub(lambda tab: "\n" * tab[0].count("\n"), text)
        yield source, f"{folder}/{name}.py", _padded(_blocks(rest))
    for source in sorted((ROOT / "statemap").rglob("*.py")):
        if source.name == "_brainstate.py":
            continue  # brainstate need not be installed
        text = source.read_text()
        name = source.relative_to(ROOT).with_suffix("").as_posix()
        for start, _, docstring in PythonDocStringDocument.extract_docstrings(text):
            before = text[:start].count("\n")
            yield (
                source,
                f"docstrings/{name}_{before + 1}.py",
                _padded(_blocks(docstring, before)),
            )
    for source in sorted((ROOT / "examples").glob("*.py")):
        yield source, f"scripts/{source.name}", source.read_text()
    source = ROOT / "tests" / "test_typing.py"
    yield source, f"typing/{source.name}", source.read_text()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with all programs, and from each file in it to where it is from."""
    folder, sources = tmp_path_factory.mktemp("programs").resolve(), {}
    for source, name, text in programs():
        if text.strip():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
            sources[target] = source.relative_to(ROOT)
    (folder / "readme" / "mistakes.py").write_text(MISTAKES)
    settings = {
        "typeCheckingMode": "strict",
        "pythonVersion": "3.11",
        "useLibraryCodeForTypes": False,  # libraries that declare no types have none
        "executionEnvironments": [
            {"root": root, **dict.fromkeys(sorted(off), False)} for root, off in OFF.items()
        ],
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    (folder / "mypy.ini").write_text(MYPY)
    return folder, sources


def check(written, found):
    """Judges what a checker found: triples of a file, a line and a message."""
    folder, sources = written
    mistakes = folder / "readme" / "mistakes.py"
    errors = [
        f"{sources[file]}:{line}: {message}" for file, line, message in found if file != mistakes
    ]
    assert not errors, "\n".join(errors)
    lines = MISTAKES.splitlines()
    expected = {i for i, line in enumerate(lines, start=1) if "# wrong" in line}
    assert {line for file, line, _ in found} == expected


def test_pyright(written):
    pytest.importorskip("pyright", reason="pyright is in the `dev` extra")
    folder, _ = written
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},  # where it is as if installed
    )
    assert result.returncode in (0, 1), result.stdout + result.stderr
    found = json.loads(result.stdout)["generalDiagnostics"]
    check(
        written,
        [
            (pathlib.Path(x["file"]), x["range"]["start"]["line"] + 1, x["message"].splitlines()[0])
            for x in found
            if x["severity"] == "error"
        ],
    )


def test_mypy(written):
    pytest.importorskip("mypy", reason="mypy is in the `dev` extra")
    folder, _ = written
    command = [sys.executable, "-m", "mypy", "--output", "json", "--cache-dir", ".cache", "."]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"MYPYPATH": str(ROOT)},
    )
    assert result.returncode in (0, 1), result.stdout + result.stderr
    found = map(json.loads, result.stdout.splitlines())
    check(
        written,
        [(folder / x["file"], x["line"], x["message"]) for x in found if x["severity"] == "error"],
    )


def test_the_types_of_the_package_are_complete():
    pytest.importorskip("pyright", reason="pyright is in the `dev` extra")
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"]
    result = subprocess.run(
        [*command, "--verifytypes", "statemap", "--ignoreexternal"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    symbols = json.loads(result.stdout)["typeCompleteness"]["symbols"]
    assert len(symbols) > 100
    incomplete = [
        f"{symbol['name']}: {[x['message'] for x in symbol['diagnostics']]}"
        for symbol in symbols
        if symbol["isExported"] and not (symbol["isTypeKnown"] and not symbol["isTypeAmbiguous"])
    ]
    assert not incomplete, "\n".join(incomplete)
