"""Shows every class under its public name, `statemap.States`, and fills in what is counted.

hippogriffe does the first, except for classes with a `__pdoc__`, which know how to print
themselves.
"""

import pathlib
import re
import sys


sys.path.insert(0, str(pathlib.Path(__file__).parent))
import _measured
import _side_by_side


# In a signature, where every word is highlighted by itself, and in the text of a tooltip.
_HIGHLIGHTED = re.compile(
    r'(<span class="n">statemap</span><span class="o">\.</span>)'
    r'<span class="n">_\w+</span><span class="o">\.</span>(<span class="n">)_?(?=[A-Z])'
)
_PLAIN = re.compile(r"\b(statemap\.)_\w+\._?(?=[A-Z])")


def on_page_markdown(markdown: str, **_: object) -> str:
    return _measured.filled(_side_by_side.filled(markdown))


def on_post_page(output: str, **_: object) -> str:
    return _PLAIN.sub(r"\1", _HIGHLIGHTED.sub(r"\1\2", output))
