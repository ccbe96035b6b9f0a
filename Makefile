.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17

# One stamp per environment: set up again only when what it is made from has changed.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	# torch by its exact version first: a range would make pip weigh gigabytes of CUDA builds.
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

install: $(VENV)/.installed  ## make .venv with the package and its known-good dependencies

quickstart: install  ## the whole way, offline: pretrain on the documentation of your packages, fine-tune a tagger, show the numbers
	$(BIN)/python recipes/quickstart.py

$(VENV)/.demo-installed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,demo]"
	touch $@

demo: $(VENV)/.demo-installed  ## a page on 127.0.0.1:7860 that shows what the models of the quickstart see in a text
	$(BIN)/python recipes/demo.py

test: install  ## every test, the slow ones included
	$(BIN)/python -m pytest -q

test-fast: install  ## the tests that take seconds
	$(BIN)/python -m pytest -q -m "not slow"

test-sweeps: install  ## every case of what `make test` takes a sample of: 174 kills, and every write of a run (an hour)
	$(BIN)/python -m pytest -q --whole-sweeps -m sweep
	$(BIN)/python tests/recipes/sweep_every_write.py

lint: install  ## ruff: style and formatting
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

.venv-peers/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	.venv-peers/bin/python -m pip install --quiet --constraint constraints.txt --editable . simpletransformers==0.70.8
	touch $@

benchmark-peers: install .venv-peers/.installed  ## time training steps here, simpletransformers beside them
	$(BIN)/python recipes/benchmark/benchmark.py --peers_python .venv-peers/bin/python

benchmark-gpu: install  ## whoever has a GPU: is it right there, how fast, where the time goes (a quarter of an hour, no network)
	$(BIN)/python recipes/benchmark/gpu.py

clean:  ## remove what the runs of this folder made
	rm -rf outputs

.PHONY: help install quickstart demo test test-fast test-sweeps lint benchmark-peers benchmark-gpu clean
