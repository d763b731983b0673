# make demo and make test need nothing but python3 (3.10 or newer) with its venv module.
VENV ?= .venv
PYTHON ?= python3
OVERRIDES ?=

# Installed again when the dependencies change, or when the environment served another checkout before.
STAMP := $(VENV)/.autoreid-$(shell (cat setup.cfg pyproject.toml; pwd) | cksum | cut -d' ' -f1)

.PHONY: demo test quick lint install

## Search, derive, train and rank on synthetic people, with pictures.
demo: install
	PYTHON=$(VENV)/bin/python scripts/demo.sh $(OVERRIDES)

## Lint, type checks and all tests.
test: lint
	$(VENV)/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations 15

## The tests without a cluster and without long runs, for while you work: under three minutes on two cores.
quick: install
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not cluster"

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

install: $(STAMP)
	@scripts/install_dot.sh

$(STAMP): setup.cfg pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/.autoreid-*
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@
