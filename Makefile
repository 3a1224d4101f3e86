# `make demo` and `make test` set up all they need, on a fresh machine with Python 3.11 or 3.12 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test lint pages format bench-mnist bench-speed bench-scale bench-methods

demo: $(VENV)/core
	$(BIN)/weft compare fedala fedavg local --data mnist-10k --clients 20 --alpha 0.1 --rounds 20 --out runs/demo

test: lint
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Renew the pages that are generated from the methods
pages: $(VENV)/dev
	$(BIN)/python -m weft.experiment.pages docs/methods README.md docs/index.md docs/laws.md

format: $(VENV)/dev
	-$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/dev: $(VENV)/core
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

# Full MNIST from WEFT_DATA; may be interrupted, and goes on where it stopped
METHODS := fedavg fedprox scaffold feddyn fednova fedavgm fedadam fedyogi fedadagrad moon central local fedavg-ft \
	fedper fedrep fedbn lg-fedavg ditto apfl per-fedavg pfedme fedala fedproto
bench-mnist: $(VENV)/core
	$(BIN)/weft compare $(METHODS) --data mnist --model mlp --clients 20 --partition dirichlet --alpha 0.1 --rounds 10 \
		--batch-size 50 --lr 0.05 --momentum 0 --weight-decay 0 --evaluate-every 2 --seeds 3 --out runs/mnist
	$(BIN)/python benchmarks/mnist/page.py runs/mnist

# Weft against peers, which are installed into runs/speed/env. Reads WEFT_DATA; may be interrupted, and goes on where it stopped.
# For a part: make bench-speed SPEED="--only S1,S3 --peers weft,sequential"
bench-speed: $(VENV)/core
	$(BIN)/pip install -q -c constraints.txt pillow
	-$(BIN)/python benchmarks/speed/run.py $(SPEED)
	-$(BIN)/python benchmarks/speed/limits.py
	$(BIN)/python benchmarks/speed/page.py

# The cost of a round by its cohort; memory over rounds, over runs and with 100,000 clients. May be interrupted, and goes on where
# it stopped. For a part: make bench-scale SCALE="--only cohort"
bench-scale: $(VENV)/core
	$(BIN)/python -m benchmarks.scale $(SCALE)
	$(BIN)/python -m benchmarks.scale.page

# The leaderboard: every method on every setting, on two processes, in at most three hours. Reads WEFT_DATA; may be interrupted,
# and goes on where it stopped. For a part: make bench-methods METHODS_RUN="--settings mnist-dirichlet --methods fedala fedavg"
bench-methods: $(VENV)/core
	$(BIN)/pip install -q -c constraints.txt -e '.[text]'
	$(BIN)/python -m benchmarks.methods --processes 2 $(METHODS_RUN)
	$(BIN)/python -m benchmarks.methods.page runs/methods
