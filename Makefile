# make demo: the main job, from nothing. make test: all tests but the slow proofs. make help: the rest.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
EXTRAS ?= cpu,report,weights,tfds,litert,dev
# for tests of TF1's own layers; by its dependencies it would install TensorFlow a second time, under another name
TF_KERAS = tf-keras==2.21.0

.PHONY: help install demo test test-all check gpu-check format lock wheel clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/:/'

install: $(VENV)/.installed ## set up .venv with the locked versions

$(VENV)/.installed: pyproject.toml setup.py requirements.lock
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed; {sys.executable} is {v[0]}.{v[1]} (make PYTHON=python3.12 ...)")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=requirements.lock $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(TF_KERAS)
	touch $@

demo: install ## fine-tune the pre-trained vit:mini on the embedded images (about 2 minutes)
	$(BIN)/python -m scripts.finetune

test: install ## all tests but the slow proofs
	$(BIN)/python -m pytest -n 2 --dist=worksteal -m 'not slow'

test-all: install ## all tests, slow proofs included
	$(BIN)/python -m pytest -n 2 --dist=worksteal

check: install ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gpu-check: install ## contracts, steps and memory on one GPU (about 10 minutes; needs EXTRAS=gpu,report,weights,dev)
	$(BIN)/python -m scripts.gpu_check

format: install ## rewrite with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: install ## compute requirements.lock anew
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python -m uv pip compile --universal --fork-strategy fewest --python-version 3.11 --no-header --no-annotate \
	  --extra cpu --extra report --extra weights --extra text --extra images --extra tfds --extra litert --extra onnx --extra dev --output-file requirements.lock --upgrade pyproject.toml

wheel: install ## build a wheel into dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean: ## remove what was built
	rm -rf $(VENV) build dist *.egg-info
