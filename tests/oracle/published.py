"""Published programs, scripts and notebooks, on brainstate and with our engine under it.

    python -m tests.oracle.published FOLDER [FOLDER ...] [--only PART] [--limit SECONDS]

`FOLDER` is a checkout with `.py` and `.ipynb` files. Each runs twice, in processes of its own: as
it is, and after `statemap.compat.install(layers="brainstate")`. Cell by cell, the class of the
error, if there is one, and the numbers that were printed have to be the same, and at the end
those that its variables hold. What does not run on brainstate itself, in the time that it is
given, is listed and not compared.
"""

import argparse
import ast
import contextlib
import io
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time
import types
from typing import Any


RELATIVE = 1e-3
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+\.?\d*(?:e[-+]?\d+)?(?![\w.])", re.I)
# What is printed of clocks, of memory, of addresses and of the lines of a traceback is never twice
# the same.
TIMED = re.compile(
    r'0x[0-9a-f]+|\d\d:\d\d:\d\d|File "[^\n]*|'
    r"[^\n]*(?:\bms\b|seconds?|elapsed|time|it/s|speed|\d ?s\b)[^\n]*",
    re.I,
)


# In the process that runs a program.


def cells_of(path: pathlib.Path) -> list[str]:
    text = path.read_text()
    if path.suffix != ".ipynb":
        return [text]
    found = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    lines = ["".join(c["source"]).splitlines() for c in found]
    return ["\n".join("pass" if re.match(r"\s*[%!]", x) else x for x in cell) for cell in lines]


def run(path: pathlib.Path, ours: bool) -> dict[str, Any]:
    """Runs a program in this process."""
    import matplotlib
    import numpy as np

    matplotlib.use("Agg")
    np.random.seed(0)
    import brainstate as brainstate  # whose stream starts with numbers of numpy's

    if ours:
        from statemap import compat

        compat.install(layers="brainstate")
    import jax

    random.seed(0)
    np.random.seed(0)
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__file__ = str(path)
    sys.argv, sys.path[:0] = [str(path)], [str(path.parent)]
    record = []
    for i, cell in enumerate(cells_of(path)):
        printed, error = io.StringIO(), None
        try:
            with contextlib.redirect_stdout(printed):
                _execute(cell, f"<cell {i}>", main.__dict__, path.suffix == ".ipynb")
                jax.effects_barrier()  # what is printed from compiled code
        except BaseException as raised:
            error = [type(raised).__name__, str(raised)[:300]]
        record.append({"out": printed.getvalue(), "error": error})
        if error and path.suffix != ".ipynb":
            break
    held = {k: numbers(v) for k, v in vars(main).items() if not k.startswith("_")}
    return {"cells": record, "held": {k: v for k, v in held.items() if v}}


def _execute(cell: str, name: str, names: dict[str, Any], shown: bool) -> None:
    import linecache

    linecache.cache[name] = len(cell), None, cell.splitlines(True), name
    tree, last = ast.parse(cell), None
    if shown and tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)  # pyright: ignore
    exec(compile(tree, name, "exec"), names)
    if last is not None:
        value = eval(compile(last, name, "eval"), names)
        if value is not None:
            print(repr(value))


def numbers(x: Any) -> list[float]:
    """Of the arrays of a pytree, States included: sizes, means, deviations, first elements."""
    import brainstate
    import jax
    import numpy as np

    is_state = lambda y: isinstance(y, brainstate.State)
    plain = (jax.Array, np.ndarray, bool, int, float, list, tuple, dict, brainstate.State)
    if not isinstance(x, plain) and not hasattr(x, "mantissa"):
        return []
    out: list[float] = []
    with contextlib.suppress(Exception):
        for leaf in jax.tree.leaves(x, is_leaf=is_state)[:50]:
            for part in jax.tree.leaves(leaf.value) if is_state(leaf) else [leaf]:
                a = np.asarray(part)
                if a.dtype.kind in "biuf" and a.size:
                    a = a.astype(float).ravel()
                    out += [a.size, float(a.mean()), float(a.std()), *a[:3].tolist()]
    return out


# In the process that compares.


def outcome(path: pathlib.Path, ours: bool, limit: float) -> dict[str, Any] | None:
    """What a program did, or None if it took too long or its process ended."""
    path, root = path.resolve(), pathlib.Path(__file__).parents[2]
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "outcome.json"
        command = [sys.executable, "-m", "tests.oracle.published", "--run", str(path), str(out)]
        path_of = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
        names = {"JAX_PLATFORMS": "cpu", "MPLBACKEND": "Agg", "PYTHONPATH": path_of}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        began = time.perf_counter()
        try:
            subprocess.run(
                command + ["--ours"] * ours,
                cwd=folder,
                env=os.environ | names,
                timeout=limit,
                **quiet,
            )
        except subprocess.TimeoutExpired:
            return None
        if not out.exists():
            return None
        return {**json.loads(out.read_text()), "seconds": round(time.perf_counter() - began, 1)}


def close(a: list[float], b: list[float]) -> bool:
    return len(a) == len(b) and all(
        x == y or x != x and y != y or abs(x - y) <= RELATIVE * max(abs(x), abs(y), 1e-3)
        for x, y in zip(a, b)
    )


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """What is not the same, in words."""
    found = []
    for i, (a, b) in enumerate(zip(theirs["cells"], ours["cells"])):
        if (a["error"] or [None])[0] != (b["error"] or [None])[0]:
            found.append(f"cell {i}: {a['error']} became {b['error']}")
        printed = [
            [float(x) for x in NUMBER.findall(TIMED.sub("", cell["out"]))] for cell in (a, b)
        ]
        if not close(*printed):
            found.append(f"cell {i}: it prints other numbers")
    for name in sorted(theirs["held"].keys() | ours["held"].keys()):
        if not close(theirs["held"].get(name, []), ours["held"].get(name, [])):
            found.append(f"`{name}` holds other numbers")
    return found


def verdict(path: pathlib.Path, limit: float) -> tuple[str, list[str]]:
    theirs = outcome(path, False, limit)
    if theirs is None:
        return "not on brainstate", [f"not done in {limit:.0f} s"]
    errors = [c["error"] for c in theirs["cells"] if c["error"]]
    if errors and 2 * len(errors) > len(theirs["cells"]):
        return "not on brainstate", [": ".join(errors[0]).partition("\n")[0]]
    ours = outcome(path, True, 3 * limit)
    if ours is None:
        return "differs", ["its process ended, or it takes three times as long"]
    found = differences(theirs, ours)
    if found:  # some programs are not the same twice: they draw from the clock
        again = outcome(path, False, limit)
        moved = differences(theirs, again) if again else []
        found = [x for x in found if x not in moved]
    return ("differs", found) if found else ("same", [])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.oracle.published", description=__doc__)
    parser.add_argument("folders", nargs="*", type=pathlib.Path)
    parser.add_argument("--only", default="", help="a part of the path")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds on brainstate itself")
    parser.add_argument(
        "--out", type=pathlib.Path, help="a JSON file for the verdicts, which adds to it"
    )
    parser.add_argument("--run", nargs=2, type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        path, out = options.run
        out.write_text(json.dumps(run(path, options.ours)))
        return 0
    before = options.out is not None and options.out.exists()
    verdicts: dict[str, Any] = json.loads(options.out.read_text()) if before else {}
    for folder in options.folders:
        files = sorted(x for x in folder.rglob("*") if x.suffix in (".py", ".ipynb"))
        files = [x for x in files if options.only in str(x) and not _is_no_program(x)]
        for i, path in enumerate(files, start=1):
            name = str(path.relative_to(folder))
            verdicts[name] = said, why = verdict(path, options.limit)
            print(f"{i}/{len(files)} {said:<18}{name}", *why, sep="\n    ", flush=True)
            if options.out:
                options.out.write_text(json.dumps(verdicts, indent=1, sort_keys=True) + "\n")
    counts = {x: sum(v[0] == x for v in verdicts.values()) for x in ("same", "differs")}
    print(f"{counts['same']} the same, {counts['differs']} differ, of {len(verdicts)}.")
    return 1 if counts["differs"] else 0


def _is_no_program(path: pathlib.Path) -> bool:
    """Tests, settings of Sphinx, helpers of a folder's other files."""
    return (
        path.suffix == ".py"
        and not re.match(r"\d", path.name)
        or any("test" in part or part.startswith(("_", ".")) for part in path.parts)
    )


if __name__ == "__main__":
    sys.exit(main())
