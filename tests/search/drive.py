"""Runs a study in a process that tests can kill: drive.py STUDY.yaml ROOT [TRAINER], by default the analytic one."""

import sys
from pathlib import Path

from search import engine
from search.study import load

if __name__ == "__main__":
    trainer = sys.argv[3] if len(sys.argv) > 3 else "analytic_trainer:train"
    outcome = engine.run(load(Path(sys.argv[1])), Path(sys.argv[2]), trainer=trainer)
    sys.exit(0 if outcome.finished else 1)
