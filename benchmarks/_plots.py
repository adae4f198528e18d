"""The figures, from the JSON alone."""

import dataclasses
import pathlib
from typing import Any

import matplotlib

from ._report import by_measure, Row


N_STATES = "states, N"


@dataclasses.dataclass(frozen=True)
class Panel:
    measure: str
    shows: str  # "ratio", or the unit of the figures
    xlabel: str = N_STATES
    title: str | None = None


PLOTS: dict[str, tuple[Panel, ...]] = {
    "warm": (
        Panel("warm call", "ratio", title="Warm call: all states read and written"),
        Panel("compute-bound call", "ratio", title="The same with a matrix product a state"),
    ),
    "partial": (Panel("reads two, writes one", "us", title="Two of N states read, one written"),),
    "cold": (
        Panel("tracing", "ratio", title="First call: tracing"),
        Panel("first call", "us", title="First call: all of it"),
    ),
    "scan": (
        Panel("a scan of 1,000 steps", "ratio", title="A scan of 1,000 steps"),
        Panel("instructions of that scan", "instructions", title="The size of its program"),
    ),
    "random": (
        Panel("one draw a lane", "ratio", title="One random draw a lane"),
        Panel("ten draws a lane", "ratio", title="Ten random draws a lane"),
    ),
    "devices": (Panel("call over eight devices", "ratio", title="Lanes over eight devices"),),
    "shim": (Panel("call of mutable states", "us", title="The same text on either library"),),
    "bridge": (
        Panel("NNX model, warm call", "ratio", "blocks, N", "A Flax NNX model, warm call"),
        Panel("Equinox model, warm call", "ratio", "blocks, N", "An Equinox model, warm call"),
    ),
    "growth": (
        Panel("all of N states touched", "us", title="All states touched"),
        Panel("two of N states touched", "us", title="Two states touched"),
        Panel("lanes of one state", "us", "lanes", "Lanes"),
        Panel("lanes of one state: peak memory", "bytes", "lanes", "Lanes: peak memory"),
        Panel("lanes in chunks", "us", "lanes at a time", "Chunks: time"),
        Panel("lanes in chunks: peak memory", "bytes", "lanes at a time", "Chunks: peak memory"),
    ),
}
YLABELS = {  # with what a figure is divided by
    "ratio": ("time, relative to by hand", 1.0),
    "us": ("time (ms)", 1e3),
    "bytes": ("memory (MiB)", 2.0**20),
    "instructions": ("instructions", 1.0),
}
COLOURS = {  # of a library; its forms are told apart by their markers
    "by hand,": "#888888",
    "by hand": "black",
    "statemap": "#d1232a",
    "Equinox": "#2e7fb8",
    "NNX": "#3d9a50",
    "brainstate": "#9a62c7",
    "jax.pmap": "#d98b1f",
}
MARKERS = "os^Dv"
SMALL_STEPS = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)


def draw(cases: dict[str, list[Row]], out: pathlib.Path) -> list[pathlib.Path]:
    """Writes a PNG for each case that has figures."""
    matplotlib.use("Agg")
    return [
        _draw_case(PLOTS[case], by_measure(rows), out / f"{case}.png")
        for case, rows in cases.items()
        if rows and case in PLOTS
    ]


def _draw_case(
    panels: tuple[Panel, ...], rows: dict[str, list[Row]], file: pathlib.Path
) -> pathlib.Path:
    from matplotlib.figure import Figure

    panels = tuple(panel for panel in panels if panel.measure in rows)
    columns = min(len(panels), 2)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns + 2.4, 3.4 * lines), layout="constrained")
    handles: dict[str, Any] = {}
    for axes, panel in zip(figure.subplots(lines, columns, squeeze=False).flat, panels):
        handles |= _draw_panel(axes, panel, rows[panel.measure])
    for axes in figure.axes[len(panels) :]:
        axes.set_visible(False)
    figure.legend(
        list(handles.values()), list(handles), loc="outside right upper", frameon=False, fontsize=9
    )
    figure.savefig(file, dpi=130)
    return file


def _draw_panel(axes: Any, panel: Panel, rows: list[Row]) -> dict[str, Any]:
    usual, used = rows[0]["against"], dict.fromkeys(COLOURS, 0)
    handles: dict[str, Any] = {}
    ylabel, scale = YLABELS[panel.shows]
    for who in dict.fromkeys(row["contestant"] for row in rows):
        mine = [r for r in rows if r["contestant"] == who and r["against"] == usual]
        if panel.shows == "ratio" and who == usual:
            handles[who] = axes.axhline(1.0, color="black", linewidth=1)
            continue
        values = [row[panel.shows] / scale for row in mine]
        spread = None
        if panel.shows == "ratio":
            spread = [
                [row["ratio"] - row["low"] for row in mine],
                [row["high"] - row["ratio"] for row in mine],
            ]
        library = next((name for name in COLOURS if who.startswith(name)), "by hand")
        handles[who] = axes.errorbar(
            [row["n"] for row in mine],
            values,
            yerr=spread,
            color=COLOURS[library],
            linestyle="--" if "donated" in who else "-",
            marker=MARKERS[used[library] % len(MARKERS)],
            markersize=4.5,
            linewidth=2 if library == "statemap" else 1.2,
            zorder=3 if library == "statemap" else 2,
            capsize=2,
        )
        used[library] += 1
    axes.set(xscale="log", yscale="log", xlabel=panel.xlabel, ylabel=ylabel)
    axes.set_title(panel.title or panel.measure, fontsize=10.5)
    _plain_numbers(axes)
    axes.grid(alpha=0.25, which="major")
    axes.spines[["top", "right"]].set_visible(False)
    return handles


def _plain_numbers(axes: Any) -> None:
    """Numbers as they are, and more of them than powers of ten where the range is small."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.xaxis.set_minor_locator(NullLocator())
    if axes.get_xlim()[1] < 10**5:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    low, high = axes.get_ylim()
    subs = (1.0,) if high > 500 * low else (1.0, 2.0, 5.0) if high > 5 * low else SMALL_STEPS
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
