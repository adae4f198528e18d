"""The plan of a mapping: what it does with each state, as a table."""

from collections.abc import Iterator

from ._errors import table
from ._rows import Row


class Plan:
    """What a mapping does with each state; printed, a table with a row for each.

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
        header = ("path", "kind", "shape", "read", "written", "axis in", "axis out", "why")
        body = [tuple(_cell(x) for x in row[: len(header)]) for row in self.rows]
        return f"{self.title}\n{table(header, body)}"


def _cell(x: object) -> str:
    return ("yes" if x else "no") if isinstance(x, bool) else str(x)
