# make train | make test: nothing else is needed but git, make and some Python 3.12 or 3.13 on the machine.
.PHONY: install train test test-slow lint types clean
SHELL := /bin/bash
PY := .venv/bin/python
# A worker a core, up to four: most of a test is compilation, which uses one. Files stay whole, since their tests share fixtures.
PYTEST := $(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile

# The default python3 may be too old while a newer one lies under pyenv or uv: try each candidate by running it.
define FIND_PYTHON
for candidate in "$$GEM_PYTHON" python3.12 python3.13 python3 "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.1[23]*/bin/python \
    "$$(uv python find '>=3.12,<3.14' 2>/dev/null)"; do \
  [ -n "$$candidate" ] && "$$candidate" -c 'import sys, ensurepip; sys.exit(not (3, 12) <= sys.version_info < (3, 14))' \
    >/dev/null 2>&1 && { echo "$$candidate"; exit 0; }; \
done; exit 1
endef

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@python=$$( $(FIND_PYTHON) ) || { echo "No Python 3.12 or 3.13 (with venv) found. Install one, e.g. 'apt install python3.12-venv', 'pyenv install 3.12' or 'uv python install 3.12', or name it: GEM_PYTHON=/path/to/python make install" >&2; exit 2; }; \
	echo "Using $$($$python --version) at $$python"; $$python -m venv --clear .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

train: install
	$(PY) -m gem_jax.train configs/gem_debug.py

test: install lint types
	$(PYTEST)

test-slow: install
	$(PYTEST) -m slow

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: install
	$(PY) -m mypy

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .jax_cache
