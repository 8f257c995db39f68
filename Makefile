# Everything runs in .venv/, which any target makes on first use. `make check` is what CI runs.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Images of Python often set it. The hundreds of processes that the tests start would then each compile torch anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo unit test test-all image-test test-gpu lint check docs format clean

setup: $(READY)

# --no-compile: of 16,000 modules few are ever imported, and those are compiled when they are. timm comes without what it
# depends on: its hub client would bring another HTTP client for every test (docs/dependencies.md).
$(READY): pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --no-deps timm
	touch $(READY)

demo: $(READY)
	$(BIN)/ducat demo

# For the loop of editing: the tests that train nothing and start no process.
unit: $(READY)
	$(BIN)/python -m pytest -n 2 -m unit

# A file's tests stay in one process, which makes what they share once; tests/conftest.py says in which order.
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not extended"

# Before a release: what takes minutes for what other tests show in part, too, and which lines no test reaches. Counting
# lines takes a third of what the tests take without.
test-all: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered

# Not part of `make test`: it builds an image, which takes minutes, and needs root, buildah, crun and debootstrap.
image-test: $(READY)
	DUCAT_TEST_IMAGE=1 $(BIN)/python -m pytest -s tests/end_to_end/test_image.py tests/end_to_end/test_bento_image.py

# Fails nothing where there is no GPU, and says so.
test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/codespell

check: lint test

# The documentation site, in site/. What builds it is installed on first use.
docs: $(VENV)/.docs-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(VENV)/.docs-ready: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .coverage* build site *.egg-info
