# Everything that a developer or a CI machine runs. `make` alone lists it.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# Processes of a whole `make test`, each with a GB of memory. What ARGS selects runs in one.
TEST_PROCESSES ?= 2

PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# What a GPU machine's own Python, which brings torch and transformers, may lack of ours;
# and hqq, which is pure Python and comes as source.
GPU_PACKAGES := msgspec|orjson|pyzmq|setproctitle|termcolor
GPU_PYTHON := 3.12
PACKAGES := frontend tokenizer_proc scheduler gpu_worker shared demo benchmarks tests

.DEFAULT_GOAL := help
.PHONY: help install serve test test-slow test-reliability soak lint format types imports docs check bench-gpu gpu-wheels clean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## make .venv with everything, again whenever the requirements change

$(STAMP): requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; old = sys.version_info < (3, 11); \
	  sys.exit(old and "Python 3.11 or newer is needed and $(PYTHON) is %d.%d: run make PYTHON=<a newer python>" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

serve: install  ## serve the built-in chat model on port 7088 (more flags: ARGS="--port 8000")
	$(PY) launcher.py --hf-model demo $(ARGS)

test: install  ## every fast test; needs neither a GPU nor a download (ARGS="-k scheduler")
	$(PY) -m pytest $(if $(ARGS),$(ARGS),-n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder)

test-slow: install  ## the tests that take minutes, and all random examples
	$(PY) -m pytest -m "slow and not reliability" --timeout 1800 $(ARGS)
	$(if $(ARGS),,$(PY) -m pytest -m "hypothesis and not slow and not gpu" --hypothesis-profile "every example")

test-reliability: install  ## kills, faults and hostile requests by the thousand; ends with a table
	$(PY) -m pytest tests/reliability tests/e2e -m reliability --timeout 1800 $(ARGS)

soak: install  ## 20 minutes of mixed load; no process may grow (ARGS="--minutes 4")
	$(PY) -m tests.reliability.soak $(ARGS)

lint: install  ## style and likely mistakes (ruff)
	$(PY) -m ruff check
	$(PY) -m ruff format --check

format: install  ## let ruff mend what it can
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

types: install  ## static types (mypy, strict)
	$(PY) -m mypy launcher.py example_client.py deploy/docker/health_check.py $(PACKAGES)

imports: install  ## which room may import what (import-linter)
	$(VENV)/bin/lint-imports

docs: install  ## write the generated parts anew: docs/flags.md, docker-compose.yml
	$(PY) -m tests.test_docs
	$(PY) -m tests.test_containers

check: lint types imports test  ## all of the above: run it before a push

# The machine's own Python, if it has torch, with those wheels of `make gpu-wheels` that fit it;
# else .venv.
bench-gpu:  ## correctness and speed on a CUDA device, into benchmarks/results (ARGS="--stages decode")
	@site=$$(mktemp -d) && trap 'rm -rf "$$site"' EXIT && python="$(PYTHON)" && \
	if ! $$python -c 'import sys, importlib.util as u; sys.exit(not u.find_spec("torch"))'; then \
	  $(MAKE) install && python=$(PY); \
	else \
	  for wheel in $(wildcard .whl/*.whl); do \
	    $$python -m pip install --quiet --no-index --no-deps --no-compile --target "$$site" \
	      "$$wheel" || echo "passed over: $$wheel"; \
	  done; \
	fi && PYTHONPATH="$$site" $$python -m benchmarks.bench_gpu $(ARGS)

gpu-wheels: install  ## into .whl: what a GPU machine without a network lacks to run the worker
	rm -rf .whl
	$(PY) -m pip download --quiet --no-deps --only-binary=:all: --dest .whl \
	  --python-version $(GPU_PYTHON) --implementation cp --platform manylinux2014_x86_64 \
	  $(foreach glibc,12 17 24 26 27 28 31 34,--platform manylinux_2_$(glibc)_x86_64) \
	  $$(sed -nE 's/^($(GPU_PACKAGES))(==[^ ]+).*/\1\2/p' requirements.txt)
	$(PY) -m pip wheel --quiet --no-deps --wheel-dir .whl \
	  $$(sed -nE 's/^(hqq==[^ ]+).*/\1/p' requirements.txt)

clean:  ## remove .venv and every cache
	rm -rf $(VENV) .whl .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .grimp_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
