"""The machine, the versions, and the tables. Works from the JSON alone, without JAX."""

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from typing import Any


PACKAGES = ("statemap", "jax", "jaxlib", "equinox", "flax", "brainstate", "numpy")
Row = dict[str, Any]
UNITS = ("us", "bytes", "instructions", "runs", "times")
VERDICTS = ("met", "within noise", "missed")


def machine() -> dict[str, Any]:
    """What the figures depend on, and nothing that tells whose machine it is."""
    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.release().split('-')[0]}, {platform.machine()}",
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        found["memory in GiB"] = round(pages / 2**30)
    if hasattr(os, "getloadavg"):
        found["load before"] = round(os.getloadavg()[0], 1)
    return found


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def unit_of(row: Row) -> str:
    return next(unit for unit in UNITS if unit in row)


def amount(row: Row) -> str:
    """The figure itself, with three digits."""
    unit = unit_of(row)
    value = row[unit]
    scales = {
        "us": ((1e6, "s"), (1e3, "ms"), (1.0, "µs")),
        "bytes": ((2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")),
    }.get(unit)
    if scales is None:
        return f"{value:.1f} times" if unit == "times" else f"{value:,.0f}"
    # From a little less than a unit on, so that 999.9 KiB are 1.00 MiB.
    scale, name = next((s for s in scales if value >= 0.976 * s[0]), scales[-1])
    return f"{value / scale:#.3g}".rstrip(".") + f" {name}"


def _cell(row: Row) -> str:
    if unit_of(row) != "us" or row["contestant"] == row["against"]:
        return amount(row)
    return f"{_short(row['ratio'])} ({_short(row['low'])}-{_short(row['high'])})"


def _short(ratio: float) -> str:
    digits = 0 if ratio >= 100 else 1 if ratio >= 10 else 2 if ratio >= 0.1 else 3
    return f"{ratio:.{digits}f}"


def by_measure(rows: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["measure"], []).append(row)
    return found


def table(measure: str, rows: list[Row]) -> str:
    """A column for each size, a line for each contestant, and one for each target below it."""
    sizes = sorted({row["n"] for row in rows})
    usual = rows[0]["against"]
    lines = [[measure, *(f"{n:,}" for n in sizes)]]
    for who, against in dict.fromkeys((row["contestant"], row["against"]) for row in rows):
        mine = {r["n"]: r for r in rows if (r["contestant"], r["against"]) == (who, against)}
        label = who if against == usual else f"{who}, to {against}"
        lines.append([label, *(_cell(mine[n]) if n in mine else "" for n in sizes)])
        if any(row["target"] is not None for row in mine.values()):
            lines.append(["  target", *(_target(mine.get(n)) for n in sizes)])
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))])
        for line in lines
    )


def _target(row: Row | None) -> str:
    if row is None or row["target"] is None:
        return ""
    return f"{row['target']:g} {row['verdict']}"


def report(results: dict[str, Any]) -> Iterator[str]:
    """The tables of all cases, then how many targets are met and which are not."""
    for what in ("machine", "versions"):
        yield ", ".join(f"{name} {value}" for name, value in results[what].items())
    if results["quick"]:
        yield "A quick run: few rounds, and not all sizes."
    yield (
        "Times of the first line are medians; the others' are medians of their ratios to it within "
        "a\nround, with the quartiles in brackets. A target is the most that a ratio should be."
    )
    for case, rows in results["cases"].items():
        yield f"\n=== {case}"
        skipped = results["skipped"][case]
        for why in dict.fromkeys(skipped.values()):
            yield f"Skipped, {why}: {'; '.join(n for n, w in skipped.items() if w == why)}."
        for measure, of_measure in by_measure(rows).items():
            yield "\n" + table(measure, of_measure)
    yield "\n" + summary(results["cases"])


def summary(cases: dict[str, list[Row]]) -> str:
    judged = [(case, row) for case, rows in cases.items() for row in rows if row["verdict"]]
    counts = {v: sum(row["verdict"] == v for _, row in judged) for v in VERDICTS}
    lines = ["Targets: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.items()) + "."]
    for case, row in judged:
        if row["verdict"] != "met":
            ratio = f"{_short(row['ratio'])} ({_short(row['low'])}-{_short(row['high'])})"
            lines.append(
                f"  {row['verdict']}: {case}, {row['measure']}, {row['n']:,}: {row['contestant']} "
                f"to {row['against']} {ratio}; target {row['target']:g}"
            )
    return "\n".join(lines)
