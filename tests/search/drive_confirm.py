"""Confirms a study in a process that tests can kill: drive_confirm.py FOLDER SEEDS."""

import sys
from pathlib import Path

from search import confirm
from search.folder import STUDY_FILE
from search.study import load

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    outcome = confirm.run(
        load(folder / STUDY_FILE),
        folder,
        seeds=int(sys.argv[2]),
        trainer="seeded_trainer:train",
        timer="seeded_trainer:measure",
    )
    sys.exit(0 if outcome.finished else 1)
