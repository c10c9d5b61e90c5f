# Everything a person types. `make` alone lists it.
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-full serve test test-long check docs lock clean

# What .venv was made for, if it is there.
DEVICE ?= $(shell cat .venv/device 2>/dev/null || echo cpu)
EXTRA ?=
MODELS ?= smollm2-135m qwen2.5-0.5b
PY := .venv/bin/python
TYPED := cgd_ray serving jobs
# The demos train with two workers, for which a machine with one GPU has no room.
ONE_GPU = $(if $(filter gpu,$(shell cat .venv/device 2>/dev/null)),training.workers=1)

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Variables: PYTHON=/path/to/python3.11  DEVICE=cpu|gpu  EXTRA=eval (with setup)  ARGS=... (more for pytest and demo)"

setup: ## Make .venv from the lock and fetch the demo models (once: 3 to 8 minutes, 10 GB)
	@requirements/install.sh $(DEVICE) $(EXTRA)
	@$(PY) -m cgd_ray.models.demo $(MODELS)

demo: setup ## Run all phases with real small models on this machine's CPU (minutes)
	@$(PY) -m cgd_ray.runtime.device
	$(PY) jobs/pipeline.py jobs/recipes/demo.yaml $(ONE_GPU) $(ARGS)

demo-full: setup ## The same at a size where the student gets measurably better (longer)
	$(PY) jobs/pipeline.py jobs/recipes/demo-full.yaml $(ONE_GPU) $(ARGS)

serve: setup ## Serve the demo's student behind an OpenAI-compatible endpoint
	.venv/bin/cgd serve jobs/recipes/demo.yaml

test: setup ## Unit and integration tests (with CI=true, an unexpected skip is a failure)
	$(PY) -m pytest -n 2 -m "not long" tests/unit tests/integration $(ARGS)

test-long: setup ## Chaos, soak and sweeps
	$(PY) -m pytest -m long tests/long tests/integration $(ARGS)

check: setup ## Lint, formatting, types, ceilings of type escapes, floors, docs, freshness of the locks
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy $(TYPED)
	$(PY) .ci/type_debt.py $(TYPED)
	.venv/bin/lint-imports
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet
	$(PY) requirements/lock.py check

docs: setup ## Build the documentation as a site with a search (build/site/index.html)
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build
	@echo "open build/site/index.html"

lock: setup ## Compile requirements/*.txt anew after a change of pyproject.toml (ARGS=--upgrade: newest versions)
	$(PY) requirements/lock.py compile $(ARGS)

clean: ## Remove .venv and the tools' caches (runs and fetched models stay)
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
