# DIM: one command for each thing a developer does. `make help` lists them.

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(VENV)/bin
BASE := $(VENV)/.made
DEMO := $(VENV)/.demo-installed
DEV := $(VENV)/.dev-installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps
JS_IPFS := tests/support/js_ipfs
# Nodes are started by the hundred: their code is compiled once, whatever the environment says.
unexport PYTHONDONTWRITEBYTECODE
KINDS := unit simulation integration e2e performance security

.DEFAULT_GOAL := help
.PHONY: help setup demo js-ipfs test $(addprefix test-,$(KINDS)) check bench bench-distribution bench-snapshots chaos simulate simulate-long report up down format lock clean

help:  ## this list
	@grep -hE '^[a-z% -]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(DEV)  ## a virtual environment with every extra and the test tools

demo: $(DEMO)  ## three nodes on this machine, one job of each pattern, a table of results
	$(BIN)/dimnode demo

js-ipfs: $(JS_IPFS)/node_modules/.package-lock.json  ## a second implementation of Kubo's RPC, for some tests (needs node and npm)

test: $(DEV)  ## all tests, coverage and its gates
	$(BIN)/python tools/run_tests.py

$(addprefix test-,$(KINDS)): test-%: $(DEV)  ## the tests of one kind, without coverage
	$(BIN)/python -m pytest tests/$*

check: $(DEV)  ## lint, format, types, import rules, generated files, locks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python tools/generate_protos.py --check
	$(BIN)/python tools/generate_bootstrap.py --check
	$(BIN)/python tools/lock.py --check

bench: $(DEV)  ## the benchmark: a table, and bench-results.json
	$(BIN)/python -m tools.bench

bench-distribution: $(DEV)  ## one file to 1, 3 and 5 nodes: from all, from one source, by plain streams; MB=256
	$(BIN)/python -m tools.bench_distribution $(if $(MB),--mb $(MB))

bench-snapshots: $(DEV)  ## the published state: JOBS=100000 in one process, and JOBS=10000 on real nodes, with a newcomer
	$(BIN)/python -m tools.bench_snapshots $(if $(JOBS),--jobs $(JOBS))
	$(BIN)/python -m tools.bench_snapshots --nodes $(if $(JOBS),--jobs $(JOBS))

chaos: $(DEV)  ## a real swarm under fire; takes SECONDS=600 SEED=1 NODES=5 RATE=4 ONLY=kill SPARE=1 and exits 1 if a job is lost or wrong
	$(BIN)/python -m tools.chaos $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) $(if $(NODES),--nodes $(NODES)) $(if $(RATE),--rate $(RATE)) $(if $(ONLY),--only $(ONLY)) $(if $(SPARE),--spare $(SPARE))

simulate: $(DEV)  ## simulated swarms: SEED=7 plays one again and prints what happened, else SEEDS=1000 from FIRST=1 on; NODES=50, SCENARIO=…
	$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),1000) --first $(or $(FIRST),1)) $(if $(NODES),--nodes $(NODES)) $(if $(SCENARIO),--scenario $(SCENARIO))

simulate-long: $(DEV)  ## new seeds, for HOURS=1
	$(BIN)/python -m tests.simulation --hours $(or $(HOURS),1) $(if $(NODES),--nodes $(NODES))

report:  ## htmlcov/, coverage.xml, test-results.xml, report.md (runs the tests if there are no results)
	@test -f test-results.xml || $(MAKE) test || true
	$(BIN)/python tools/report.py

up: $(DEMO)  ## a local swarm of three that keeps running (see `make down`)
	$(BIN)/python -m dimnode.demo.local_swarm up --dir .dim-demo

down:  ## stop the local swarm
	$(BIN)/python -m dimnode.demo.local_swarm down --dir .dim-demo

format: $(DEV)  ## format the code, sort imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(DEV)  ## write requirements/*.lock from what is installed
	$(BIN)/python tools/lock.py

clean:  ## remove everything that was made here, the virtual environment too
	rm -rf $(VENV) build dist *.egg-info htmlcov coverage.xml coverage.json test-results.xml report.md report bench-results.json chaos-results.json chaos-kept .dim-demo
	rm -rf $(JS_IPFS)/node_modules
	rm -rf .coverage .coverage.* .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(BASE):
	@test -n "$(PYTHON)" || { echo "DIM needs Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit("DIM needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# The second environment contains the first: after `make setup` nothing is left to do for the demo.
$(DEMO): $(BASE) requirements/demo.lock pyproject.toml
	@if [ -f $(DEV) ] && [ $(DEV) -nt requirements/dev.lock ] && [ $(DEV) -nt pyproject.toml ]; then echo "using the development environment"; \
	else set -x; $(PIP) -r requirements/demo.lock && $(PIP) -e .; fi
	@touch $@

# trio-typing (which libp2p needs at run time) brings outdated stubs that hide trio's own types from the type checker.
$(DEV): $(BASE) requirements/dev.lock pyproject.toml
	$(PIP) -r requirements/dev.lock
	$(PIP) -e .
	rm -rf $(VENV)/lib/python*/site-packages/trio-stubs
	@touch $@

$(JS_IPFS)/node_modules/.package-lock.json: $(JS_IPFS)/package-lock.json
	npm ci --prefix $(JS_IPFS) --ignore-scripts --omit=optional --no-audit --no-fund
	@touch $@
