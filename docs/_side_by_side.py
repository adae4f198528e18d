"""Two forms of one program: their sources as tabs of a page, and how many lines of code each has.

What is compared is the core of the examples: the model, what makes many of it, and the step. What
both forms share (data, plots, checks, the command line) lies in one of the two files, and is left
out. Docstrings, comments and blank lines are not counted.
"""

import ast
import io
import pathlib
import re
import tokenize


EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"

# For each part of a program, what defines it with statemap, and what in plain JAX.
PROGRAMS = {
    "digits_ensemble": {
        "one member": ("Classifier", "Stats Classifier normalise"),
        "members × images": ("make_ensemble", "States make_ensemble"),
        "training and prediction": ("make_epoch predict", "make_epoch predict"),
    },
    "kalman_customers": {
        "one customer": ("Customer", "Customer Totals States"),
        "the population, and a day": ("Population", "Population"),
    },
}
FORMS = {"statemap": "", "plain JAX": "_plain"}
_LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)


def source(file: str, names: str) -> str:
    """The definitions of some names, in the order of the file."""
    text = (EXAMPLES / file).read_text()
    lines, wanted, found = text.splitlines(), set(names.split()), []
    for node in ast.parse(text).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name in wanted:
            wanted.remove(node.name)
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            found.append("\n".join(lines[first - 1 : node.end_lineno]))
    if wanted:
        raise ValueError(f"{file} defines no {', '.join(sorted(wanted))}.")
    return "\n\n\n".join(found)


def count(code: str) -> int:
    """The lines of code, without docstrings, comments and blank lines."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type not in _LAYOUT and token.string:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            docstring = node.body[0]
            lines.difference_update(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    return len(lines)


def counts(program: str) -> dict[str, list[int]]:
    """The lines of each part, in each form, and of all."""
    parts = {
        part: [
            count(source(f"{program}{ending}.py", chosen))
            for ending, chosen in zip(FORMS.values(), names)
        ]
        for part, names in PROGRAMS[program].items()
    }
    return parts | {"together": [sum(lines) for lines in zip(*parts.values())]}


def tabs(program: str) -> str:
    """A table of counts, and the two sources side by side."""
    lines = counts(program)
    table = ["| lines of code | " + " | ".join(FORMS) + " |", "|---" * (1 + len(FORMS)) + "|"]
    table += [f"| {part} | " + " | ".join(map(str, row)) + " |" for part, row in lines.items()]
    shown = ["\n".join(table)]
    for i, (form, ending) in enumerate(FORMS.items()):
        names = " ".join(chosen[i] for chosen in PROGRAMS[program].values())
        code = ["```python", *source(f"{program}{ending}.py", names).splitlines(), "```"]
        shown.append(f'=== "{form}"\n\n' + "\n".join(f"    {x}" if x else "" for x in code))
    return "\n\n".join(shown)


def filled(markdown: str) -> str:
    """A page with `<!-- side by side: PROGRAM -->` replaced by its tabs."""
    return re.sub(r"<!-- side by side: (\w+) -->", lambda m: tabs(m[1]), markdown)
