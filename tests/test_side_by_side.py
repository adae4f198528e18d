"""What the page "Side by side" shows and counts."""

import importlib.util
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

import statemap as sm


DOCS = pathlib.Path(__file__).parents[1] / "docs"


def load(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


page = load("_side_by_side")

PMEAN = 'mean = jax.lax.pmean(x, "batch")'
RESTORE = ", state_out_axes={sm.Restore: sm.HiddenState}"

CODE = '''
@decorator
def f(x):  # a comment after code
    """A docstring
    of two lines."""

    # A comment.
    text = """two
lines"""
    return (
        x,
        text,
    )


class Empty:
    "Only this."
'''


def test_lines_of_code_are_no_comments_docstrings_or_blanks():
    assert page.count(CODE) == 9


def test_a_definition_comes_with_its_decorators(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "EXAMPLES", tmp_path)
    (tmp_path / "a.py").write_text(CODE)
    assert page.source("a.py", "f").startswith("@decorator\ndef f(x):")
    assert page.source("a.py", "Empty f").endswith('"Only this."')
    with pytest.raises(ValueError, match=r"a\.py defines no g"):
        page.source("a.py", "f g")


@pytest.mark.parametrize("program", page.PROGRAMS)
def test_a_program_is_no_longer_than_in_plain_jax(program):
    ours, plain = page.counts(program)["together"]
    assert 0 < ours < plain


def test_the_page_is_filled_in():
    text = (DOCS / "tutorials" / "side_by_side.md").read_text()
    filled = page.filled(text)
    assert "<!-- side" not in filled
    for program in page.PROGRAMS:
        ours, plain = page.counts(program)["together"]
        assert f"| together | {ours} | {plain} |" in filled
    assert filled.count('=== "statemap"') == len(page.PROGRAMS) == filled.count('=== "plain JAX"')


def changed(name, old, new):
    """An example with a part of its source replaced."""
    file = page.EXAMPLES / f"{name}.py"
    source = file.read_text()
    assert source.count(old) == 1
    module = types.ModuleType(f"{name}_changed")
    sys.modules[module.__name__] = module  # where jaxtyping's annotations are looked up
    exec(compile(source.replace(old, new), file, "exec"), vars(module))
    return module


@pytest.mark.parametrize(
    "name, old, new, error, message",
    [
        ("digits_ensemble", PMEAN, "mean = x", sm.BatchAxisError, "`mean`"),
        ("digits_ensemble", RESTORE, "", sm.BatchAxisError, "`hidden`"),
        ("digits_ensemble_plain", PMEAN, "mean = x", ValueError, "out_axes is None"),
    ],
)
def test_what_goes_wrong_as_the_page_says(name, old, new, error, message, monkeypatch):
    monkeypatch.syspath_prepend(page.EXAMPLES)
    with jax.numpy_dtype_promotion("standard"):
        ensemble, states = changed(name, old, new).make_ensemble(jr.key(0))
        with pytest.raises(error, match=message):
            ensemble(states, jnp.ones((4, 8, 8)), train=True)


def test_the_hook_fills_in(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert "| lines of code |" in load("_hooks").on_page_markdown(
        "<!-- side by side: digits_ensemble -->"
    )
