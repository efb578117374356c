# make quickstart: trains, attacks, evaluates and exports a small network.  make test: the whole test suite.
PYTHON ?= python3
VENV ?= .venv

.PHONY: quickstart test

quickstart: $(VENV)/installed
	$(VENV)/bin/keras-sat quickstart

test: $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --editable '.[test]'
	$(VENV)/bin/python -m pytest --numprocesses=auto --dist=loadfile

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable .
	touch $@
