# make quickstart: trains, attacks, evaluates and exports a small network.  make test: the test suite.
# make docs: the site, in docs/build/html: the pages, the notebook, the reference of the docstrings.
# make test-slow: what README and docs say, and the site with its notebook: some three minutes more, for .ci/run.
# make bench: every figure of docs/performance.md, beside its peers; downloads PyTorch and takes some forty minutes.
PYTHON ?= python3
VENV ?= .venv
BENCH_RUN ?= runs/bench

.PHONY: quickstart test test-slow bench docs

quickstart: $(VENV)/installed
	$(VENV)/bin/keras-sat quickstart

test: $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --editable '.[test]'
	$(VENV)/bin/python -m pytest -m 'not slow' --numprocesses=auto --dist=loadfile

test-slow: test
	$(VENV)/bin/python -m pytest -m slow --numprocesses=auto

docs: $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --editable '.[docs]'
	$(VENV)/bin/python -m sphinx --fail-on-warning --keep-going -b html docs docs/build/html

bench: $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --editable '.[bench]'
	test -e $(BENCH_RUN) || $(VENV)/bin/keras-sat train --output=$(BENCH_RUN)
	$(VENV)/bin/python benchmarks/train_step.py --steps 1 10
	$(VENV)/bin/python benchmarks/train_step.py --steps 1 --image_size=224 --batch_size=8
	$(VENV)/bin/python benchmarks/peers.py
	$(VENV)/bin/python benchmarks/evaluation.py $(BENCH_RUN)
	$(VENV)/bin/python benchmarks/footprint.py
	$(VENV)/bin/python benchmarks/attacks.py $(BENCH_RUN)
	$(VENV)/bin/python benchmarks/serving.py
	$(VENV)/bin/python benchmarks/input_pipeline.py
	$(VENV)/bin/python benchmarks/activations.py

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable .
	touch $@
