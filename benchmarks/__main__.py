"""`python -m benchmarks`: all cases, each in a process of its own, their tables and figures."""

import argparse
import datetime
import importlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from ._report import machine, report, versions


CASES = (
    "warm",
    "partial",
    "cold",
    "scan",
    "random",
    "devices",
    "shim",
    "growth",
    "bridge",
    "layers",
)
EIGHT = "--xla_force_host_platform_device_count=8"
HERE = pathlib.Path(__file__).parent


def run_case(case: str, quick: bool) -> dict[str, Any]:
    """Measures one case in this process."""
    if case == "devices":  # JAX reads this when it starts
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{flags} {EIGHT}".strip()}
    module = importlib.import_module(f"._{case}", __package__)
    timing = importlib.import_module("._timing", __package__)
    begin, rows = time.perf_counter(), []
    for part in progress(case, list(module.parts(timing.QUICK if quick else timing.FULL))):
        rows += [row.as_dict() for row in part()]
    import jax

    return {
        "rows": rows,
        "skipped": importlib.import_module("._contestants", __package__).skipped,
        "seconds": round(time.perf_counter() - begin, 1),
        "backend": f"{jax.default_backend()} ({jax.devices()[0].device_kind})",
    }


def progress(case: str, parts: list[tuple[str, Any]]) -> Iterator[Any]:
    """The parts one by one, with a bar if there are tqdm and a terminal, else with lines."""
    try:
        from tqdm import tqdm
    except ImportError:
        tqdm = None
    if tqdm is None or not sys.stderr.isatty():
        for i, (label, part) in enumerate(parts, start=1):
            print(f"{case} {i}/{len(parts)}: {label}", file=sys.stderr, flush=True)
            yield part
        return
    with tqdm(parts, desc=f"{case:<8}", unit="part", leave=False) as bar:
        for label, part in bar:
            bar.set_postfix_str(label)
            yield part


def run_all(cases: list[str], quick: bool) -> dict[str, Any]:
    results: dict[str, Any] = {
        "machine": machine(),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "quick": quick,
        "cases": {},
        "skipped": {},
        "seconds": {},
        "failed": [],
    }
    for case in cases:
        command = [sys.executable, "-m", "benchmarks", "--case", case, "--json", "-"]
        done = subprocess.run(
            command + ["--quick"] * quick, stdout=subprocess.PIPE, text=True, cwd=HERE.parent
        )
        if done.returncode:
            print(f"The case {case!r} failed: see above.", file=sys.stderr)
            results["failed"].append(case)
            continue
        found = json.loads(done.stdout)
        results["cases"][case] = found["rows"]
        results["skipped"][case] = found["skipped"]
        results["seconds"][case] = found["seconds"]
        if case != "devices":
            results["machine"]["backend"] = found["backend"]
    return results


def as_json(results: dict[str, Any]) -> str:
    """With a line for each row, so that two files can be compared."""
    about = {name: value for name, value in results.items() if name != "cases"}
    cases = ",\n".join(
        f"{json.dumps(case)}: [\n" + ",\n".join(map(json.dumps, rows)) + "\n]"
        for case, rows in results["cases"].items()
    )
    return json.dumps(about, indent=1)[:-2] + ',\n "cases": {\n' + cases + "\n}}\n"


def plot(results: dict[str, Any], out: pathlib.Path) -> None:
    try:
        from ._plots import draw
    except ImportError as error:
        print(f"There are no plots: {error}.", file=sys.stderr)
        return
    for file in draw(results["cases"], out):
        print(f"Wrote {file}", file=sys.stderr)


def chosen(names: str) -> list[str]:
    wanted = [name.strip() for name in names.split(",")]
    if unknown := set(wanted) - set(CASES):
        raise argparse.ArgumentTypeError(
            f"{', '.join(sorted(unknown))}: the cases are {', '.join(CASES)}"
        )
    return [case for case in CASES if case in wanted]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute, and less exact")
    parser.add_argument("--only", type=chosen, default=list(CASES), help="such as warm,cold")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        help="a folder; benchmarks/results, and within it `part` for what is quick or not all",
    )
    parser.add_argument("--again", type=pathlib.Path, help="shows and draws an earlier JSON")
    parser.add_argument("--case", choices=CASES, help="measures one case in this very process")
    parser.add_argument("--json", default="-", help="with --case: a file, or - for stdout")
    options = parser.parse_args()

    if options.case:
        found = json.dumps(run_case(options.case, options.quick))
        if options.json == "-":
            print(found)
        else:
            pathlib.Path(options.json).write_text(found)
        return 0

    part = options.quick or options.only != list(CASES)
    out = options.out or (HERE / "results" / "part" if part else HERE / "results")
    out.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    if options.again:
        results = json.loads(options.again.read_text())
    else:
        results = run_all(options.only, options.quick)
    for block in report(results):
        print(block)
    if not options.again:
        file = out / "results.json"
        file.write_text(as_json(results))
        print(f"Wrote {file}", file=sys.stderr)
    plot(results, out)
    print(f"{time.perf_counter() - begin:.0f} s in all.", file=sys.stderr)
    return 1 if results["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
