"""Shows every class under its public name, `statemap.States`.

hippogriffe does so, except for classes with a `__pdoc__`, which know how to print themselves.
"""

import re


# In a signature, where every word is highlighted by itself, and in the text of a tooltip.
_HIGHLIGHTED = re.compile(
    r'(<span class="n">statemap</span><span class="o">\.</span>)'
    r'<span class="n">_\w+</span><span class="o">\.</span>'
)
_PLAIN = re.compile(r"\b(statemap\.)_\w+\.(?=[A-Z])")


def on_post_page(output: str, **_: object) -> str:
    return _PLAIN.sub(r"\1", _HIGHLIGHTED.sub(r"\1", output))
