"""Checks what a strict build lets pass: `python docs/_check_site.py <site>`, from the root.

hippogriffe may leave out links to the sources, or lead them astray, and say nothing.
"""

import html
import pathlib
import re
import sys


EXPECTED = {
    "mapping": ("vmap2", "StatefulMapping", "Plan"),
    "populations": ("vmap2_new_states", "Map"),
    "states": ("State", "RandomState", "States", "make_with_states"),
    "filters": ("to_predicate", "OfType"),
    "errors": ("BatchAxisError",),
    "compat": ("compat.State", "compat.to_functional"),
    "compat_transform": ("compat.transform.vmap2", "compat.transform.StatefulMapping"),
    "compat_nn": ("compat.nn.Module", "compat.nn.Map"),
    "compat_random": ("compat.random.RandomState", "compat.random.seed"),
    "compat_environ": ("compat.environ.get",),
    "compat_util": ("compat.util.OfType",),
}


def problems(site: pathlib.Path) -> list[str]:
    found = []
    for page, names in EXPECTED.items():
        text = (site / "api" / page / "index.html").read_text()
        found += [f"{page}: {p}" for name in names if (p := _wrong_link(text, name))]
    for path in sorted(site.rglob("*.html")):
        visible = html.unescape(re.sub(r"<[^>]*>", "", path.read_text()))
        for what in re.findall(r"statemap\.(?:[a-z]+\.)*_[a-z]\w*|\[statemap[\w.]*\]\[\]", visible):
            found.append(f"{path.relative_to(site)}: shows {what}")
    return found


def _wrong_link(text: str, name: str) -> str | None:
    """What is wrong with the entry of a name, which links to the lines that define it."""
    heading = re.search(rf'<h\d id="statemap\.{re.escape(name)}".*?</h\d>', text, re.DOTALL)
    if heading is None:
        return f"has no entry for {name}"
    link = re.search(r"/blob/\w+/(statemap/[\w/]+\.py)#L(\d+)-L\d+", heading.group())
    if link is None:
        return f"has no link to the source of {name}"
    first = int(link[2]) - 1
    lines = pathlib.Path(link[1]).read_text().splitlines()[first : first + 3]  # past decorators
    if not any(re.match(rf"\s*(class|def) {name.rpartition('.')[2]}\b", line) for line in lines):
        return f"links {name} to line {link[2]} of {link[1]}"
    return None


if __name__ == "__main__":
    wrong = problems(pathlib.Path(sys.argv[1]))
    print("\n".join(wrong) or "the built site is as it should be")
    sys.exit(bool(wrong))
