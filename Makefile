# make demo    port the real all-MiniLM-L6-v2 to spikes -> out/minilm/report.html
# make test    the whole test suite
# make check   formatting, lint, types, layers, tests
# make test-wheel   the tests of the source archive against the wheel, in a clean environment
# make docs    render results/ and docstrings into docs/, and build the site: out/site/index.html
# make test-ecosystem   ports through the real sentence-transformers, lm-eval, mteb, accelerate (part of make test-full)
# make bench   speed, as ratios; make test-full adds the slow tests
# make bench-kernels   neurons and spike products beside SpikingJelly's and snnTorch's (extra peers)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ECOSYSTEM := $(VENV)/.ecosystem
SITE := $(VENV)/.site
# One process a core, one thread a process: the test models are tiny. A process runs tests in their order and shares ports.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist worksteal
# Without the hook that checks shapes: compiled code does not bear it, and it would refuse bad input first.
BARE := $(BIN)/pytest -q --noconftest -o addopts="--strict-markers --strict-config" tests/test_compile.py tests/test_doors.py
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test test-full test-ecosystem test-wheel check docs bench bench-kernels clean

demo: $(READY)
	$(BIN)/isospike port minilm --max-error 0.04 --out out/minilm

test: $(READY)
	$(PYTEST)
	$(BARE) -m "not slow"

test-full: $(READY) $(ECOSYSTEM)
	$(PYTEST) -m ""
	$(BARE)

test-ecosystem: $(ECOSYSTEM)
	$(PYTEST) -m "" tests/test_uses.py

$(ECOSYSTEM): $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[ecosystem]"
	@touch $@

# The wheel in a clean environment, and the tests that the source archive carries against it.
test-wheel: $(READY)
	rm -rf build dist
	$(BIN)/pip install --quiet build
	$(BIN)/python -m build --outdir dist .
	$(PYTHON) -m venv build/clean
	build/clean/bin/pip install --quiet --constraint constraints.txt "$$(ls dist/*.whl)[demo,dev]"
	mkdir build/source && tar -xzf dist/*.tar.gz -C build/source --strip-components=1
	rm -r build/source/src
	cd build/source && OMP_NUM_THREADS=1 ../clean/bin/pytest -q -n 2 tests

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

docs: $(SITE)
	$(BIN)/python -m benchmarks.documents
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

$(SITE): $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[docs]"
	@touch $@

# Results go to out/: those in results/ are kept for the documents.
BENCH := -m benchmarks --preset full --results out/results

bench: $(READY)
	$(BIN)/python $(BENCH) port-speed port-memory machine-speed

# Peers without what they require: some of it would replace torch.
bench-kernels: $(READY)
	$(BIN)/pip install --quiet --no-deps spikingjelly==2.0.0 snntorch==1.0.0 loguru h5py
	$(BIN)/python -W ignore $(BENCH) lif spike-linear spike-attention spikformer spikformer-training neuron-start

# Everything is installed once; a changed requirement installs again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "isospike needs Python 3.11 or newer, got $$($(PYTHON) --version). Set PYTHON=..."; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "no virtual environment: on Debian, apt-get install python3-venv"; exit 2; }
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[demo,dev]"
	@touch $(READY)

clean:
	rm -rf $(VENV) out build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
