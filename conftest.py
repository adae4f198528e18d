"""Runs the code blocks of the README, of the documentation and of all docstrings as tests."""

import importlib.util

from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser


# What is about a library that is not installed: by its package, the files.
_BRIDGES = {"flax": ("nnx", "linen"), "haiku": ("haiku",), "brainstate": ("brainstate",)}
_EXCLUDED = [
    f"statemap/bridge/_{name}.py"
    for package, names in _BRIDGES.items()
    for name in names
    if importlib.util.find_spec(package) is None
]

_parsers = [PythonCodeBlockParser(), SkipParser()]

pytest_collect_file = (
    Sybil(parsers=_parsers, patterns=["README.md", "docs/*.md", "docs/**/*.md"])
    + Sybil(
        parsers=_parsers,
        patterns=["statemap/*.py", "statemap/*/*.py", "statemap/*/*/*.py"],
        excludes=_EXCLUDED,
        document_types={".py": PythonDocStringDocument},
    )
).pytest()
