"""One process of a team: ``python team_process.py REQUEST.json REPORTS.jsonl [--stop EPOCH] [--hold EPOCH FILE]``."""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

from trainers.contract import StopTrial, TrialInterrupted, TrialRequest
from trainers.detector import follow, train


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("request", type=Path)
    parser.add_argument("reports", type=Path)
    parser.add_argument("--stop", type=int)
    parser.add_argument("--hold", nargs=2)
    asked = parser.parse_args()

    def report(message):
        with asked.reports.open("a") as file:
            file.write(json.dumps(asdict(message)) + "\n")
        if message.phase != "epoch":
            return
        if message.epoch == asked.stop:
            raise StopTrial
        if asked.hold and message.epoch == int(asked.hold[0]):
            while not Path(asked.hold[1]).exists():
                time.sleep(0.05)

    request = TrialRequest.from_json(json.loads(asked.request.read_text()))
    try:
        if request.team is not None and request.team.rank:
            follow(request)
            print("let go")
        else:
            train(request, report)
    except StopTrial:
        print("stopped")
    except TrialInterrupted as error:
        print(f"interrupted: {error}")
        return 3
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
