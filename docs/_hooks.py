"""Shows every class under its public name, `statemap.States`, and fills in what is counted or
listed.

hippogriffe does the first, except for classes with a `__pdoc__`, which know how to print
themselves.
"""

import functools
import inspect
import pathlib
import re
import sys
from collections.abc import Callable


sys.path.insert(0, str(pathlib.Path(__file__).parent))
import _measured
import _side_by_side

from statemap.compat import random
from statemap.compat.random import _table


# In a signature, where every word is highlighted by itself, and in the text of a tooltip.
_HIGHLIGHTED = re.compile(
    r'(<span class="n">statemap</span><span class="o">\.</span>)'
    r'<span class="n">_\w+</span><span class="o">\.</span>(<span class="n">)_?(?=[A-Z])'
)
_PLAIN = re.compile(r"\b(statemap\.)_\w+\._?(?=[A-Z])")


def _distributions() -> str:
    """The distributions of `compat.random`, which are made of a table: their source is a row."""
    lines = []
    for name in _table.__all__:
        shown = _parameters(getattr(random, name))
        own = _parameters(functools.partial(getattr(random.RandomState, name), None))
        lines.append(f'- <a id="statemap.compat.random.{name}"></a>`{name}{shown}`')
        lines[-1] += "" if own == shown else f", as a method `{name}{own}`"
    return "\n".join(lines)


def _parameters(fn: Callable[..., object]) -> str:
    return str(inspect.signature(fn).replace(return_annotation=inspect.Signature.empty))


def on_page_markdown(markdown: str, **_: object) -> str:
    markdown = _measured.filled(_side_by_side.filled(markdown))
    return re.sub("<!-- distributions -->", lambda _: _distributions(), markdown)


def on_post_page(output: str, **_: object) -> str:
    return _PLAIN.sub(r"\1", _HIGHLIGHTED.sub(r"\1\2", output))
