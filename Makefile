# Every target makes .venv by itself from pyproject.toml and constraints.txt.
# DEVICE, PROFILE, SEED and DATASET pass through to the lessons: DEVICE=cuda make run

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# An empty value installs the newest releases: make test CONSTRAINTS=
CONSTRAINTS ?= constraints.txt
JOBS ?= 2
# Jupyter refuses to run as root, which is the usual user in a container, unless it is told to.
ROOT_FLAG := $(if $(filter 0,$(shell id -u)),--allow-root)
# One thread for each test process: $(JOBS) processes share the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=$(JOBS)
# The cells of a notebook need one kernel, so a file stays with one process.
NBVAL := $(PYTEST) --dist=loadfile --nbval-lax --nbval-current-env --nbval-cell-timeout=300

.PHONY: help lab run test check format labs notebooks constraints device clean

help:
	@echo "make lab      open JupyterLab on the first lesson"
	@echo "make run      run every lesson without a browser; results under runs/"
	@echo "make test     everything that CI checks"
	@echo "make check    the fast part of it: lint, architecture, unit tests"
	@echo "make labs     write labs/ anew from solutions/"
	@echo "make notebooks  write setup cells, contents and labs anew, in the committed form"
	@echo "make format   format the code"

# $(call install,extras,stamp): the one way in which .venv is filled.
define install
	@echo "==> Installing Shipyard$(1) into $(VENV): a few minutes the first time, then never again."
	$(BIN)/python -m pip install --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable ".$(1)"
	@touch $@
endef

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Shipyard needs Python 3.11 or newer; '$(PYTHON)' is `$(PYTHON) --version 2>&1`."; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "==> Creating the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "Python could not create $(VENV). On Debian and Ubuntu: apt install python3-venv"; exit 1; }

$(VENV)/.lab: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(call install,[lab,serve])

$(VENV)/.test: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(call install,[test])
	@touch $(VENV)/.lab

# The server's root is the checkout, so that links from lessons to labs and back can be followed.
lab: $(VENV)/.lab
	@echo "==> Starting JupyterLab on this machine only. Ctrl-C stops it."
	$(BIN)/jupyter lab --ip=127.0.0.1 --ServerApp.root_dir="$(CURDIR)" $(ROOT_FLAG) \
	  --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(LAB_OPTIONS)

# A device that is missing stops everything here, before any work is done.
device: $(VENV)/.lab
	@$(BIN)/shipyard check-device "$${DEVICE:-auto}"

run: device
	$(BIN)/shipyard run --all

check: $(VENV)/.test device
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(PYTEST) --dist=worksteal -m "not slow and not browser"

test: check
	@echo "==> Slow tests: kills and restarts, grading, papermill, the browser"
	$(PYTEST) --dist=worksteal -m "slow or browser"
	@echo "==> Every lesson and every solution, cell by cell"
	$(NBVAL) notebooks solutions
	$(BIN)/shipyard labs --check

labs: $(VENV)/.test
	$(BIN)/shipyard labs

notebooks: $(VENV)/.test
	$(BIN)/shipyard normalise notebooks/*.ipynb solutions/*.ipynb
	$(BIN)/shipyard contents
	$(BIN)/shipyard labs

format: $(VENV)/.test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# CUDA's own packages stay out: another system's torch brings others, or none.
constraints: $(VENV)/.test
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable \
	  | sed 's/+[a-z0-9]*$$//' | grep -vE '^(nvidia-|cuda-|triton)'; } > constraints.new
	@mv constraints.new constraints.txt && echo "constraints.txt now holds what $(VENV) holds."

clean:
	rm -rf $(VENV) runs results build
