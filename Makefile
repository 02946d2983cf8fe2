# Two commands for a bare machine with Python 3.10 to 3.12 and a C++ compiler: `make demo` and `make test`.
# Both do the set-up first (deploy/setup.sh), which is skipped when it is done.

HEADWAY = .venv/bin/headway
PYTHON_BIN = .venv/bin/python

.PHONY: setup demo test test-slow test-faults lint types docs docs-links clean

setup:
	@bash deploy/setup.sh

demo: setup
	$(HEADWAY) demo

test: setup
	OMP_NUM_THREADS=1 $(PYTHON_BIN) -m pytest -m "not slow" -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test-slow: setup
	$(PYTHON_BIN) -m pytest -m slow

# Kills, hangs, full disks and lost servers in randomised small studies; runs that are done are not done again.
test-faults: setup
	OMP_NUM_THREADS=1 $(PYTHON_BIN) tests/faults/campaign.py --runs 60 --seed 0

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: setup
	.venv/bin/mypy

# The documentation site, build/docs/index.html; a link or anchor that leads nowhere is an error, as is any warning.
docs: setup
	$(PYTHON_BIN) -m sphinx -W --keep-going -q -b html docs build/docs

# Asks every address outside of the site whether it is there; needs the network.
docs-links: setup
	$(PYTHON_BIN) -m sphinx -W --keep-going -q -b linkcheck docs build/links

clean:
	rm -rf .venv .setup.lock build *.egg-info .pytest_cache .mypy_cache .ruff_cache
