# The two commands of this project, on a machine with Python 3.11 or newer, git and make:
#
#   make align    aligns the demo model; CONFIG=configs/... picks another run, ARGS="rollout.batch_size=8" overrides settings
#   make test     runs the whole test suite; ARGS="-k guidance" narrows it, ARGS="-n 0" shows it in order
#
# Both create .venv and install the versions of constraints.txt into it once; `make help` lists the other commands.

CONFIG ?= configs/demo.yaml
ARGS ?=

VENV := .venv
PYTHON := $(VENV)/bin/python
# Written when the installation is complete; older than either file it depends on, it is made anew.
INSTALLED := $(VENV)/.installed
PYTHON_CANDIDATES := python3.11 python3.12 python3.13 python3

# Whole runs leave a core idle while their processes start one after another. A file's tests, which share a Ray, stay
# together, in the order of tests/conftest.py.
IN_TWO_PROCESSES := --numprocesses=2 --dist=loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help align test lint format docs setup clean

help:
	@echo "make align   align a model: CONFIG=$(CONFIG) ARGS=\"section.key=value --dry-run\""
	@echo "make test    run every test: ARGS=\"pytest arguments\""
	@echo "make lint    ruff and mypy, nothing changed"
	@echo "make format  let ruff reorder imports and lay out the code"
	@echo "make docs    write the parts of docs/ that come from the code"
	@echo "make setup   only create $(VENV) and install constraints.txt into it"
	@echo "make clean   remove $(VENV), caches and build leftovers; runs/ stays"

align: $(INSTALLED)
	$(PYTHON) jobs/align.py --config $(CONFIG) $(ARGS)

test: $(INSTALLED)
	$(PYTHON) -m pytest $(IN_TWO_PROCESSES) $(ARGS)

lint: $(INSTALLED)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

format: $(INSTALLED)
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

docs: $(INSTALLED)
	$(PYTHON) jobs/make_docs.py

setup: $(INSTALLED)

clean:
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): constraints.txt pyproject.toml | $(PYTHON)
	$(PYTHON) -m pip install --disable-pip-version-check --no-input -c constraints.txt -e '.[dev]'
	@touch $@

# A candidate counts only if it runs: version managers put commands on the PATH that do not start.
$(PYTHON):
	@for candidate in $(PYTHON_CANDIDATES); do \
	    if "$$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        echo "Creating $(VENV) with $$candidate ($$("$$candidate" --version))"; \
	        exec "$$candidate" -m venv $(VENV); \
	    fi; \
	done; \
	echo "No working Python 3.11 or newer with the venv module among: $(PYTHON_CANDIDATES)." >&2; \
	echo "Install one (Debian and Ubuntu: apt install python3.11 python3.11-venv) and run make again." >&2; \
	exit 1
