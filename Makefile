# Every target first makes .venv, when it is missing or older than what it is made from.
PYTHON ?= python3
BIN     = .venv/bin
READY   = .venv/.ready
ARGS   ?=

.PHONY: run test lab data bench clean
run: $(READY)            ## run every lesson on the built-in samples; the pages land in _run/
	$(BIN)/exp run --jobs 2 $(ARGS)
test: $(READY)           ## every notebook as a test, and the tests of what notebooks can't show
	$(BIN)/exp export --check
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)
lab: $(READY)            ## open the lessons in JupyterLab
	$(BIN)/exp lab $(ARGS)
data: $(READY)           ## list the datasets; make data ARGS="get mnist" fetches one
	$(BIN)/exp data $(ARGS)
bench: $(READY)          ## side-by-side measurements
	$(BIN)/python -m benchmarks $(ARGS)
clean:
	rm -rf .venv _run build dist *.egg-info .pytest_cache .hypothesis .ruff_cache

$(READY): settings.ini setup.py pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:3]; sys.exit(v < (3, 11, 4) and "Python 3.11.4 or newer is needed, this is %d.%d.%d: call make with PYTHON=python3.12, say" % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(READY)
