PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-oldest check install format clean

demo: install
	mkdir -p demo
	$(BIN)/keyhole compare --json demo/compare.json --plot demo/compare.png

test: install
	$(BIN)/python -m pytest

# The engine on the oldest supported transformers, put in front of the installed one.
test-oldest: $(VENV)-oldest/.installed
	PYTHONPATH=$(CURDIR)/$(VENV)-oldest $(BIN)/python -m pytest tests/engines

$(VENV)-oldest/.installed: constraints-oldest.txt $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)-oldest --upgrade -r $<
	touch $@

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-oldest build dist demo .ruff_cache .hypothesis
