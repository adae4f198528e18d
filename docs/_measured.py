"""What was measured, as tables of a page, from the JSON that `python -m benchmarks` writes."""

import json
import pathlib
import re
import sys


ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks._report import amount, by_measure  # needs no JAX


def results(case: str) -> dict:
    """The results that have a case."""
    for file in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        found = json.loads(file.read_text())
        if case in found["cases"]:
            return found
    raise ValueError(f"No file in benchmarks/results has the case {case!r}.")


def tables(case: str) -> str:
    """A table for each measure of a case, and what they were measured with."""
    found = results(case)
    shown = []
    for measure, rows in by_measure(found["cases"][case]).items():
        sizes = sorted({row["n"] for row in rows})
        lines = [
            f"| {measure} | " + " | ".join(f"N = {n:,}" for n in sizes) + " |",
            "|---" * (1 + len(sizes)) + "|",
        ]
        for who in dict.fromkeys(row["contestant"] for row in rows):
            mine = {row["n"]: row for row in rows if row["contestant"] == who}
            cells = [_cell(mine[n]) if n in mine else "" for n in sizes]
            lines.append(f"| {who} | " + " | ".join(cells) + " |")
        shown.append("\n".join(lines))
    machine, versions = found["machine"], found["versions"]
    of = ", ".join(f"{k} {v}" for k, v in versions.items() if k not in ("statemap", "jaxlib"))
    shown.append(
        f"Medians of ratios to the first row, which is absolute; on {machine['cores']} cores of "
        f"{machine['cpu']}, with {of}."
    )
    return "\n\n".join(shown)


def _cell(row: dict) -> str:
    if row["contestant"] == row["against"]:
        return amount(row)
    return f"{row['ratio']:.3g}" if row["ratio"] >= 10 else f"{row['ratio']:.2f}"


def filled(markdown: str) -> str:
    """A page with `<!-- measured: CASE -->` replaced by its tables."""
    return re.sub(r"<!-- measured: (\w+) -->", lambda m: tables(m[1]), markdown)
