# make quickstart   trains, attacks, evaluates and exports a small network.
# make lint         ruff (rules and format) and mypy: seconds.
# make test-fast    the quick tests of every part, in one process: under a minute.
# make test         the test suite, without what is marked slow.
# make test-slow    make test, then the commands of README and docs, and the site with its notebook: some six minutes more.
# make docs         the site, in docs/build/html: the pages, the notebook, the reference of the docstrings.
# make bench        the benchmarks of docs/performance.md, beside their peers; downloads PyTorch and takes about an hour.
PYTHON ?= python3
VENV ?= .venv
BENCH_RUN ?= runs/bench

.PHONY: quickstart lint test-fast test test-slow docs bench

quickstart: $(VENV)/installed
	$(VENV)/bin/keras-sat quickstart

lint: $(VENV)/installed-lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test-fast: $(VENV)/installed-test
	$(VENV)/bin/python -m pytest -m fast

test: $(VENV)/installed-test
	$(VENV)/bin/python -m pytest -m 'not slow' --numprocesses=auto --dist=loadfile

test-slow: test
	$(VENV)/bin/python -m pytest -m slow --numprocesses=auto --dist=loadgroup

docs: $(VENV)/installed-docs
	$(VENV)/bin/python -m sphinx --fail-on-warning --keep-going -b html docs docs/build/html

bench: $(VENV)/installed-bench
	test -e $(BENCH_RUN) || $(VENV)/bin/keras-sat train --output=$(BENCH_RUN)
	$(VENV)/bin/python benchmarks/train_step.py --steps 1 10
	$(VENV)/bin/python benchmarks/train_step.py --steps 1 --image_size=224 --batch_size=8
	$(VENV)/bin/python benchmarks/peers.py
	$(VENV)/bin/python benchmarks/evaluation.py $(BENCH_RUN)
	$(VENV)/bin/python benchmarks/footprint.py
	$(VENV)/bin/python benchmarks/attacks.py $(BENCH_RUN)
	$(VENV)/bin/python benchmarks/attacks.py ResNet20-silu --only ensemble --images=60
	$(VENV)/bin/python benchmarks/large_logits.py
	$(VENV)/bin/python benchmarks/defences.py
	$(VENV)/bin/python benchmarks/serving.py
	$(VENV)/bin/python benchmarks/input_pipeline.py
	$(VENV)/bin/python benchmarks/activations.py
	$(VENV)/bin/python benchmarks/training_run.py

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable .
	touch $@

# An extra of setup.cfg.
$(VENV)/installed-%: $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --editable '.[$*]'
	touch $@
