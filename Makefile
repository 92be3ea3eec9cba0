# Two commands need nothing but a Python >= 3.10: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt

.PHONY: demo test extras quick lint types docs web pythons clean
.DELETE_ON_ERROR:

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

# The light CPU runtime: no torch. PESQ compiles C; without a compiler the demo only leaves it out.
$(VENV)/.runtime: pyproject.toml .ci/constraints.txt | $(BIN)/python
	$(PIP) -e ".[cpu]" matplotlib
	$(PIP) pesq || echo "pesq could not be built (no C compiler?): the demo leaves PESQ out"
	touch $@

# Everything else: training, export, checks. The pinned torch is asked for by version. One call for all,
# since each call builds the editable package again and resolves what is there.
FULL := cpu,openvino,export,train,bench,demo,dev
RTX := tensorrt-rtx-cu13 cuda-python || echo "TensorRT-RTX is not available here: its checks will be skipped"
$(VENV)/.full: pyproject.toml .ci/constraints.txt | $(BIN)/python
	$(PIP) torch==2.13.0 -e ".[$(FULL)]"
	$(PIP) $(RTX)
	touch $(VENV)/.runtime $@

# And what only some tests need: the server, LiveKit, Pipecat, a Ray cluster, the Hub, the demo's page, the
# notebook, the browser page; the site's tools. Without it they are skipped and say so. Pipecat's pins of
# libraries that we share are older than ours.
PIPECAT := aiofiles docstring_parser loguru loudness sentencex wait_for2 opentelemetry-api
$(VENV)/.extras: pyproject.toml .ci/constraints.txt | $(BIN)/python
	$(PIP) torch==2.13.0 -e ".[$(FULL),serve,livekit,hub,demo-app,docs]" \
	  nbclient nbformat ipykernel playwright $(PIPECAT)
	$(PIP) $(RTX)
	$(PIP) --no-deps pipecat-ai || echo "Pipecat is not available here: its tests will be skipped"
	$(PIP) "ray[data]" || echo "Ray is not available here: its tests will be skipped"
	touch $(VENV)/.runtime $(VENV)/.full $(VENV)/.docs $@

extras: $(VENV)/.extras
ifneq ($(shell command -v npm),)
extras: web
else
	@echo "npm is not here: the browser page is not built"
endif

demo: $(VENV)/.runtime
	$(BIN)/python examples/demo.py

# A process for each core, four at most (three on two cores took longer). Each gets a run
# of files, whose tests share fixtures; one that has finished takes over tests from the end of another's, so that
# none waits for the longest file.
SUITE := $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal
test: $(VENV)/.full
	$(SUITE)

# The same without what is marked slow: while you work.
quick: $(VENV)/.full
	$(SUITE) -m "not slow"

lint: $(VENV)/.full
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory types

# mypy does not follow the path guard of dvpd/__init__.py: links show it the package as it is installed.
types: $(VENV)/.full
	rm -rf $(VENV)/types && mkdir -p $(VENV)/types/dvpd
	ln -s $(CURDIR)/dvpd/* $(CURDIR)/runtime $(CURDIR)/export $(CURDIR)/benchmarks $(VENV)/types/dvpd/
	cd $(VENV)/types && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --strict -p dvpd

# The browser page, into docs/web/dist. Node.js 20.19 or newer.
docs/web/node_modules/.package-lock.json: docs/web/package-lock.json
	cd docs/web && npm ci --ignore-scripts --no-audit --no-fund

web: docs/web/node_modules/.package-lock.json
	cd docs/web && npm run build

# The site, into site/, with the browser page if it is built; a link that leads nowhere is an error.
$(VENV)/.docs: $(VENV)/.runtime
	$(PIP) -e ".[docs]"
	touch $@

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	test ! -d docs/web/dist || cp -r docs/web/dist site/web

# The runtime on other Pythons; all that it says at once, as something else may run beside it.
pythons: | $(BIN)/python
	@.ci/pythons > $(VENV)/pythons.log 2>&1; code=$$?; cat $(VENV)/pythons.log; exit $$code

clean:
	rm -rf $(VENV) demo-output site docs/web/dist docs/web/node_modules
