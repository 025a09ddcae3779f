# `make` lists what there is to make.
VENV ?= .venv
DIST ?= dist
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt --editable
# The stamps know their checkout: an environment that was copied along with it still points to the old one.
CHECKOUT := $(shell pwd | cksum | cut -d ' ' -f 1)
RUN := $(VENV)/.run-$(CHECKOUT)
DEV := $(VENV)/.dev-$(CHECKOUT)

.PHONY: help demo test install lint format types doctest wheel clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

demo: $(RUN) ## simulate, fit, compare and report, in an environment made for it
	$(BIN)/atomzoo demo

test: $(DEV) ## run the tests; ARGS="-m 'not slow'" and the like are passed on to pytest
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

install: $(DEV) ## make the environment for development, in .venv

lint: $(DEV) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV) ## ruff: mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# mypy finds modules by their path, and the package's name is not on it: a link gives it one.
types: $(DEV) ## mypy, strict
	@mkdir -p $(VENV)/types && ln -sfn "$(CURDIR)" $(VENV)/types/atomzoo
	cd $(VENV)/types && ../bin/python -m mypy --config-file atomzoo/pyproject.toml \
		--cache-dir atomzoo/.mypy_cache -p atomzoo

doctest: $(DEV) ## run the examples in docstrings
	MPLBACKEND=Agg $(BIN)/python .ci/doctests.py

wheel: $(DEV) ## build the source distribution, and from that the wheel, in dist
	$(BIN)/python -m build --no-isolation --outdir $(DIST)

clean: ## remove the environment and everything built
	rm -rf $(VENV) build dist atomzoo.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN): pyproject.toml constraints.txt
	@python=$$(.ci/find-python) || exit 1; \
	$(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "Making $(VENV) with $$python"; $$python -m venv --clear $(VENV); }
	@echo "Installing atomzoo and what it needs (PyTorch is large: a minute or more)"
	@$(INSTALL) .
	@touch $@

$(DEV): $(RUN)
	@echo "Installing the tools for development"
	@$(INSTALL) ".[dev,microscopy,dask]"
	@touch $@
