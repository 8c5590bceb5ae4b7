# Every target works from a clean checkout; PYTHON selects the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CODE := operator tests benchmarks charts tools e2e
# make test PYTEST="-k crash -x" runs a part
PYTEST ?=

.PHONY: setup triton demo e2e e2e-up e2e-cluster e2e-down test test-unit test-slow test-integration verify sbom docs bench bench-peers fmt lock clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(STAMP)

# A real Triton server in an environment of its own (.venv-triton); says why where it cannot run.
triton: setup
	$(BIN)/python -m berth.local.triton_env

# A model served, hit and healed on this machine. KEEP=1 leaves the cluster running.
demo: setup
	$(BIN)/berth demo $(if $(KEEP),--keep)

test: test-unit test-integration test-slow

# Pure and under a minute: a process per core.
test-unit: setup
	$(BIN)/pytest tests/unit -q -n auto --dist worksteal -m "not slow" $(PYTEST)

# Pure, but seconds or minutes each: random runs, brute force, replays that golden files are compared with, and decisions
# over simulated weeks.
test-slow: setup
	$(BIN)/pytest tests/unit -q -n auto --dist worksteal -m slow $(PYTEST)

# The first run builds etcd and the Kubernetes control plane from Go modules into the user's cache folder. Most of a test is
# waiting: two processes, each with a control plane of its own, fill two cores.
test-integration: setup
	$(BIN)/pytest tests/integration -q -n 2 --dist loadfile $(PYTEST)

# Scenarios on a kind cluster with mock GPUs: needs Docker, or root and Debian packages. KEEP=1 leaves the cluster for the
# next run, NODE_IMAGE=kindest/node:... takes a public node image, PYTEST="-k drain" runs a part.
e2e: setup
	$(BIN)/pytest e2e/scenarios -q --timeout=900 $(PYTEST)

# The cluster with Berth on it; e2e-cluster without Berth.
e2e-up e2e-cluster e2e-down: e2e-%: setup
	$(BIN)/python -m e2e $*

# Style, types, layers, that nothing generated is out of date, and what is known to be unsafe: in code (bandit), in
# dependencies (pip-audit, where its database can be reached), in manifests (kube-score).
verify: setup
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/berth crd --check --check-compatible tests/data/released/v0.1.0
	$(BIN)/python charts/generate.py --check
	$(BIN)/python -m tools.metrics_page --check
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml operator charts tools
	$(BIN)/python -m tools.policies
	$(BIN)/python -m tools.audit

# The documentation site in build/site; a broken link fails.
docs: setup
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/mkdocs build --strict
	@echo build/site/index.html

# What the operator's image contains beside its base, as a CycloneDX bill of materials.
SBOM := build/berth-operator.cdx.json
sbom: setup
	$(PYTHON) -m venv --clear build/operator
	$(BIN)/pip --python build/operator/bin/python install --quiet --disable-pip-version-check --require-hashes -r requirements-operator.lock
	$(BIN)/pip --python build/operator/bin/python uninstall --quiet --yes pip setuptools
	$(BIN)/cyclonedx-py environment build/operator/bin/python --pyproject pyproject.toml --mc-type application \
		--output-reproducible --of JSON --output-file $(SBOM)
	@echo $(SBOM)

# Every bench-* in its short form.
BENCHES := $(patsubst benchmarks/bench_%.py,bench-%,$(wildcard benchmarks/bench_*.py))
.PHONY: $(BENCHES)
bench: $(BENCHES)
	@echo "SKIPPED: Berth beside a LeaderWorkerSet and a Deployment, which needs containers: make bench-peers"
$(BENCHES): bench-%: setup
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m benchmarks.bench_$*

# Berth beside a LeaderWorkerSet and a Deployment on the cluster of the end-to-end tests; RUNS=5 of each fault.
bench-peers: setup
	$(BIN)/python -m e2e.bench_peers $(if $(RUNS),--runs $(RUNS))

# Resolves pyproject.toml for every supported Python (needs uv): requirements.lock for development, and of it what the
# operator runs with, for its image and its bill of materials. And AIPerf, a client of the end-to-end tests.
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
lock:
	$(COMPILE) --group dev pyproject.toml --output-file requirements.lock
	$(COMPILE) --constraints requirements.lock pyproject.toml --output-file requirements-operator.lock
	echo aiperf==0.13.0 | $(COMPILE) - --output-file e2e/requirements-aiperf.lock

fmt: setup
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

clean:
	rm -rf $(VENV) .venv-triton .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
