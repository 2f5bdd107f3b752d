# Everything here works in a bare checkout with Python 3.11 or newer and make: the first call makes .venv.
.DEFAULT_GOAL := help
BIN := .venv/bin
STAMP := .venv/.installed
WORKERS ?= 2
BENCHMARKS = $(patsubst %/__main__.py,%,$(wildcard benchmarks/*/__main__.py)) \
	$(filter-out %/__init__.py benchmarks/_%,$(wildcard benchmarks/*.py))

# One thread for each worker, so that the workers do not fight over cores.
test: export OMP_NUM_THREADS := 1
# Threads sleep while they wait: where cores are shared, spinning ones starve the very thread they wait for.
export OMP_WAIT_POLICY ?= PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup demo studio test lint format bench docs sketch clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv and install the pinned versions

demo: $(STAMP) ## draw pictures of several sizes in one packed call, into outputs/demo/
	$(BIN)/python examples/demo.py

studio: $(STAMP) ## serve the bundled model with the studio page, and open it where there is a browser (Ctrl-C stops)
	$(BIN)/ideoflow serve --open

test: $(STAMP) ## run the whole test suite
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations 40

lint: $(STAMP) ## ruff (lint and format), mypy, and the order of the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/house.py

format: $(STAMP) ## let ruff fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## run every script in benchmarks/
	@set -e; for module in $(basename $(notdir $(BENCHMARKS))); do \
		echo "== benchmarks.$$module"; $(BIN)/python -m "benchmarks.$$module" || [ $$? -eq 4 ]; \
	done

docs: $(STAMP) ## build docs/*.md into site/
	$(BIN)/python docs/build.py

RECIPE ?= cpu
sketch: $(STAMP) ## train the sketch model from nothing, into runs/sketch/ (hours; goes on where it stopped; RECIPE=gpu)
	$(BIN)/python -m tools.sketch train runs/sketch --recipe $(RECIPE)
	$(BIN)/python -m tools.sketch export runs/sketch runs/sketch/model
	$(BIN)/python -m tools.sketch score --model runs/sketch/model --count 200 --out runs/sketch/score.json
	$(BIN)/python -m tools.sketch card runs/sketch runs/sketch/model runs/sketch/score.json \
		--recipe $(RECIPE) --machine "$$(uname -srm)"

clean: ## remove .venv and what the other targets made, all but runs/
	rm -rf .venv site outputs .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Python compiles what is imported when it is; to compile all that is installed takes two minutes more.
# torch is named on the command itself so that pip cannot settle on another build of it.
$(STAMP): pyproject.toml requirements/constraints.txt
	@python=; for candidate in python3.11 python3 python; do \
		if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
			python="$$candidate"; break; \
		fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "ideoflow needs Python 3.11 or newer, and none of python3.11, python3, python is: install one." >&2; exit 1; \
	fi; \
	if [ ! -x $(BIN)/python ]; then \
		echo "making .venv with $$($$python --version)"; \
		"$$python" -m venv .venv || { rm -rf .venv; \
			echo "could not make .venv: where Python comes in parts (Debian, Ubuntu), install python3-venv too." >&2; exit 1; }; \
	fi
	@echo "installing the pinned versions into .venv (a large download the first time: some minutes without a word)"
	$(BIN)/python -m pip install --quiet --no-compile --constraint requirements/constraints.txt torch==2.13.0 --editable '.[dev]'
	@touch $@
