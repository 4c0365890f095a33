# Everything on a fresh machine with Python 3.11+ and make: `make demo`, `make test`.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test lint types install clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/partita train chorales-tiny --output runs/chorales-tiny
	$(BIN)/partita generate runs/chorales-tiny "a slow chorale in G minor for church organ" "a lively chorale in D major for flute" --output runs/chorales-tiny/demo.wav
	@echo "listen: runs/chorales-tiny/demo-1.wav runs/chorales-tiny/demo-2.wav"
	@echo "look:   runs/chorales-tiny/report.html"

# Each file of tests in one of several processes, each of them on one core.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files | xargs $(BIN)/codespell
	$(BIN)/lint-imports --no-cache --no-logo

types: $(INSTALLED)
	$(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
