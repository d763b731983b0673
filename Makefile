# The targets need only python3 (3.10 or newer) with its venv module.
VENV ?= .venv
PYTHON ?= python3
OVERRIDES ?=

# The stamp changes with the dependencies and the checkout, so that either change triggers a new installation.
STAMP := $(VENV)/.autoreid-$(shell (cat setup.cfg pyproject.toml; pwd) | cksum | cut -d' ' -f1)

.PHONY: demo test quick lint install

## Search, derive, train and evaluate on synthetic people.
demo: install
	PYTHON=$(VENV)/bin/python scripts/demo.sh $(OVERRIDES)

## Lint, type checks and all tests.
test: lint
	$(VENV)/bin/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder --durations 15

## Tests without a cluster and without long runs, in about five minutes on two cores.
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
