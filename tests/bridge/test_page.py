"""What the page "Bring your model" shows."""

import pathlib
import re

import pytest


pytest.importorskip("flax.nnx")

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "tutorials" / "bring_your_model.md"


def test_the_plan_is_what_is_printed():
    text = PAGE.read_text()
    shown = re.search(r"^```text\n(Net .*?)```", text, re.MULTILINE | re.DOTALL)
    assert shown is not None
    code = re.findall(r"^```python\n(.*?)^```", text[: shown.start()], re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec("\n".join(code), names)
    assert str(names["plan"]).split() == shown[1].split()
