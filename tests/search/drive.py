"""Runs a study with the analytic trainer, in a process that tests can kill: drive.py STUDY.yaml ROOT."""

import sys
from pathlib import Path

from search import engine
from search.study import load

if __name__ == "__main__":
    outcome = engine.run(load(Path(sys.argv[1])), Path(sys.argv[2]), trainer="analytic_trainer:train")
    sys.exit(0 if outcome.finished else 1)
