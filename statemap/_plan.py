"""The plan of a mapping: what it does with each state, as a table."""

from collections.abc import Iterator
from typing import Any

from ._errors import table
from ._html import html_table
from ._rows import Row
from ._treescope import show_lines


_HEADER = ("path", "kind", "shape", "read", "written", "axis in", "axis out", "why")


class Plan:
    """What a mapping does with each state; printed, and in notebooks, a table with a row for each.

    Indexed by a state's dotted path, or iterated over, it gives the rows, which are named tuples.
    """

    def __init__(self, title: str, rows: tuple[Row, ...]):
        self.title = title
        self.rows = rows

    def __getitem__(self, path: str) -> Row:
        for row in self.rows:
            if row.path == path:
                return row
        raise KeyError(path)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"{self.title}\n{table(_HEADER, self._cells())}"

    def _repr_html_(self) -> str:
        return html_table(self.title, _HEADER, self._cells(), wraps=["why"])

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        return show_lines(type(self), repr(self).splitlines(), path)

    def _cells(self) -> list[tuple[str, ...]]:
        return [tuple(_cell(x) for x in row[: len(_HEADER)]) for row in self.rows]


def _cell(x: object) -> str:
    return ("yes" if x else "no") if isinstance(x, bool) else str(x)
