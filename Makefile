# `make demo` and `make test` do all their own set-up in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench clean

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(BIN)/.installed
	$(BIN)/ct2mri demo -o demo-output

test: lint
	$(BIN)/python -m pytest -n 2

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Those that fit two CPU cores in ten minutes; each is a command of its own, with more options.
bench: $(BIN)/.installed
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/translate.py --repeats 2
	$(BIN)/python benchmarks/train.py --steps 4 --repeats 3
	$(BIN)/python benchmarks/prepare.py

clean:
	rm -rf .venv build dist src/*.egg-info
