# Each of `demo` and `test` makes a fresh virtual environment, so that it shows what a newcomer
# gets. Another Python: make test PYTHON=python3.13
PYTHON ?= python3
PIP_INSTALL := -m pip install -qq --disable-pip-version-check

N ?= 1000

.PHONY: demo test fuzz bench lint docs clean

demo:
	$(PYTHON) -m venv --clear .venv-demo
	.venv-demo/bin/python $(PIP_INSTALL) ".[examples]"
	.venv-demo/bin/python examples/digits_ensemble.py

test:
	$(PYTHON) -m venv --clear .venv-test
	.venv-test/bin/python $(PIP_INSTALL) -e ".[test]"
	.venv-test/bin/python -m pytest -n 2

# Random programs against a plain loop over lanes: make fuzz N=10000
fuzz:
	$(PYTHON) -m venv --clear .venv-fuzz
	.venv-fuzz/bin/python $(PIP_INSTALL) -e ".[examples]"
	.venv-fuzz/bin/python -m tests.fuzz $(N)

# Writes tables to the terminal, and JSON and figures to benchmarks/results: some fifteen minutes.
bench:
	$(PYTHON) -m venv --clear .venv-bench
	.venv-bench/bin/python $(PIP_INSTALL) -e ".[bench]"
	.venv-bench/bin/python -m benchmarks

# For daily work: an environment that stays.
.venv/bin/ruff: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP_INSTALL) -e ".[brainstate,dev]"
	touch $@

lint: .venv/bin/ruff
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright --pythonpath .venv/bin/python

docs: .venv/bin/ruff
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict -q
	.venv/bin/python docs/_check_site.py site

clean:
	rm -rf .venv .venv-bench .venv-demo .venv-fuzz .venv-test site
