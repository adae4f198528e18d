"""Tables in notebooks."""

import html
from collections.abc import Iterable, Sequence


# Colours are those of the page: a notebook may be light or dark.
_LINE = "border: 0; border-bottom: 1px solid color-mix(in srgb, currentColor {}, transparent);"
_CELL = "text-align: left; vertical-align: top; padding: 0.2em 0.8em 0.2em 0; color: inherit;"
_ONE_LINE = "white-space: nowrap;"
_WRAPS = "white-space: normal; overflow-wrap: break-word; min-width: 16em; max-width: 48em;"


def html_table(
    title: str, header: Sequence[str], rows: Iterable[Sequence[str]], wraps: Sequence[str] = ()
) -> str:
    """Rows below a header, as HTML.

    **Arguments:**

    - `wraps`: the columns whose cells may take several lines.
    """
    widths = [_WRAPS if name in wraps else _ONE_LINE for name in header]
    head = "".join(_cell("th", name, w, "60%") for name, w in zip(header, widths))
    body = "".join(
        f"<tr>{''.join(_cell('td', x, w, '20%') for x, w in zip(row, widths))}</tr>" for row in rows
    )
    above = f'<div style="color: inherit;">{html.escape(title)}</div>' if title else ""
    style = "border-collapse: collapse; background: none; color: inherit;"
    return (
        f'<div style="overflow-x: auto;">{above}<table style="{style}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(tag: str, text: str, width: str, line: str) -> str:
    style = f"{_CELL} {width} {_LINE.format(line)}"
    return f'<{tag} style="{style}">{html.escape(text)}</{tag}>'
