"""Runs the code blocks of the README, of the documentation and of all docstrings as tests."""

from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser


_parsers = [PythonCodeBlockParser(), SkipParser()]

pytest_collect_file = (
    Sybil(parsers=_parsers, patterns=["README.md", "docs/*.md", "docs/**/*.md"])
    + Sybil(
        parsers=_parsers,
        patterns=["statemap/*.py", "statemap/*/*.py", "statemap/*/*/*.py"],
        document_types={".py": PythonDocStringDocument},
    )
).pytest()
