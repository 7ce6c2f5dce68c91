# `make` alone lists what there is. Works with GNU make 3.81 (macOS) and newer.

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.complete
PIP := $(PY) -m pip --disable-pip-version-check
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
NBSTRIPOUT := $(PY) -m nbstripout --keep-id --extra-keys metadata.language_info.version
UV_VERSION := 0.13.9

# Handed to the command behind a target: make test ARGS="-m 'not browser'"
ARGS ?=

# The interpreter that makes the environment: the first of these that is 3.11 to 3.14 and has venv,
# or the one you name: make env PYTHON=/path/to/python3
PYTHON ?=
PYTHONS := $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)
FIND_PYTHON = python=; for p in $(PYTHONS); do \
    if "$$p" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' >/dev/null 2>&1; \
    then python=$$p; break; fi; \
done; \
if [ -z "$$python" ]; then \
    echo 'Python 3.11 to 3.14 with its venv module is needed; tried: $(PYTHONS).' >&2; \
    echo 'Debian or Ubuntu: sudo apt install python3 python3-venv    macOS: brew install python@3.14' >&2; \
    echo 'Or name one: make env PYTHON=/path/to/python3' >&2; \
    exit 1; \
fi

.DEFAULT_GOAL := help
.PHONY: help env lab test course lint fix lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

env: $(STAMP) ## make .venv from requirements.lock (every target below that needs it does so by itself)

# The stamp is written last: an environment without one was interrupted and is made anew, one with an older
# one is updated in place.
$(STAMP): requirements.lock pyproject.toml $(PY)
	@if [ -f $@ ] && $(PY) -c '' 2>/dev/null; then \
	    rm -f $@; echo 'Updating $(VENV): requirements.lock or pyproject.toml has changed'; \
	else \
	    $(FIND_PYTHON); \
	    echo "Making $(VENV) with $$python (a few minutes, once)"; \
	    "$$python" -m venv --clear $(VENV); \
	fi
	$(PIP) install -r requirements.lock
	$(PIP) install --no-build-isolation --no-deps -e .
	@touch $@

# Nothing to do when it is there; when it is gone, or points to a Python that is gone, the stamp is made anew.
$(PY):

# JupyterLab shows the whole folder; its token and its loopback address stay as they are. It refuses to run as root
# unless told to.
lab: $(STAMP) ## open JupyterLab on the first notebook
	$(PY) -m jupyterlab --ServerApp.root_dir=. $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS) \
	    notebooks/00_start_here.ipynb

test: $(STAMP) ## run the tests (ARGS="..." goes to pytest)
	$(PY) -m pytest $(ARGS)

course: $(STAMP) ## run every notebook headlessly, in order (ARGS="-p model=smoke")
	$(PY) -m labkit run --all $(ARGS)

lint: $(STAMP) ## check style, format, and that notebooks carry no output
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(if $(NOTEBOOKS),$(NBSTRIPOUT) --verify $(NOTEBOOKS))

fix: $(STAMP) ## put right what lint can put right
	$(if $(NOTEBOOKS),$(NBSTRIPOUT) $(NOTEBOOKS))
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# Pins stay unless a bound in pyproject.toml moves them; ARGS=--upgrade takes the newest of everything. GPU packages are
# left out: where torch's own build needs them, pip brings those that it names.
lock: ## resolve requirements.lock anew (ARGS=--upgrade for newer versions)
	@$(FIND_PYTHON); set -e; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	"$$python" -m venv "$$tmp/venv"; \
	"$$tmp/venv/bin/python" -m pip --disable-pip-version-check install -q uv==$(UV_VERSION); \
	if [ -f requirements.lock ]; then cp requirements.lock "$$tmp/new"; fi; \
	"$$tmp/venv/bin/uv" pip compile pyproject.toml --extra dev --universal --fork-strategy fewest \
	    --no-header --annotation-style line --quiet $(ARGS) -o "$$tmp/new"; \
	{ \
	    echo '# Every version that the lab and its tests use, on Linux and macOS. Made by `make lock`, which runs'; \
	    echo '#     uv pip compile pyproject.toml --extra dev --universal --fork-strategy fewest'; \
	    echo '# and leaves out the GPU packages (nvidia-*, cuda-*, triton), of which pip brings what torch asks for,'; \
	    echo '# and what only Windows or a browser needs.'; \
	    grep -vE "^(nvidia-|cuda-|triton)|== '(win32|nt|emscripten)'" "$$tmp/new"; \
	} > "$$tmp/lock"; \
	cp "$$tmp/lock" requirements.lock; \
	echo "requirements.lock: $$(grep -c == requirements.lock) pins"

clean: ## remove the environment, caches and build files; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist labkit.egg-info
	find . -name __pycache__ -not -path './.git/*' -not -path './runs/*' -prune -exec rm -rf {} +
	find notebooks -name .ipynb_checkpoints -prune -exec rm -rf {} + 2>/dev/null || true
