"""What treescope shows of statemap's objects, and is asked for by their `__treescope_repr__`.

treescope is imported only here, and only when it asks: statemap does without it.
"""

from collections.abc import Iterable
from typing import Any


def below(path: str | None, more: str) -> str | None:
    """The path of a part, `""` being that of the object that is shown."""
    return None if path is None else path + more


def show_node(kind: type, parts: Iterable[tuple[str, Any]], path: str | None) -> Any:
    """An object that can be folded, with its parts in brackets.

    **Arguments:**

    - `parts`: each a label, such as `"name="`, and a text or what treescope has rendered.
    - `path`: where the object is found.
    """
    from treescope import rendering_parts

    children = [rendering_parts.siblings_with_annotations(*part) for part in parts]
    return rendering_parts.build_foldable_tree_node_from_children(
        prefix=rendering_parts.siblings(rendering_parts.maybe_qualified_type_name(kind), "("),
        children=children,
        suffix=")",
        comma_separated=True,
        path=path,
    )


def show_lines(kind: type, lines: Iterable[str], path: str | None) -> Any:
    """An object that is a table, with one line below the other."""
    from treescope import rendering_parts

    name = rendering_parts.maybe_qualified_type_name(kind)
    return rendering_parts.build_foldable_tree_node_from_children(
        prefix=rendering_parts.siblings(name, "("),
        children=[rendering_parts.text(line) for line in lines],
        suffix=")",
        path=path,
    )


def show_map(self: Any, path: str | None, subtree_renderer: Any) -> Any:
    """`Map.__treescope_repr__`."""
    module = subtree_renderer(self.module, path=below(path, ".module"))
    axes = "no states yet"
    if self._axes is not None:
        axes = subtree_renderer(self._axes, path=below(path, ".axes"))
    parts = [module, f"{self.init_map_size} members", repr(self.behavior), axes]
    return show_node(type(self), [("", part) for part in parts], path)
