"""The command ``headway``: parses and calls."""

from __future__ import annotations

import argparse
import atexit
import enum
import gc
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spaces.errors import CutShort, HeadwayError, UserError, without_credentials
from trainers import faults
from trainers.contract import DTYPES
from trainers.means import importing


class End(enum.Enum):
    """How a command ended: it failed for good, was cut short by its surroundings, or met what nobody foresaw."""

    DONE = "done"
    WRONG = "wrong"
    FAILED = "failed"
    CUT_SHORT = "cut short"
    FAULT = "fault"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; 0 done, 1 the work failed, 2 the input was wrong."""
    # At its end Python would look through all that was imported once more, 2 s where Ray and MLflow are.
    atexit.register(gc.freeze)
    return {End.DONE: 0, End.WRONG: 2}.get(run_command(arguments), 1)


def run_command(arguments: Sequence[str] | None = None) -> End:
    """Runs a command, and prints what it has to say."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given, argparse.Namespace(arguments=given))
    try:
        status = _command(options.command)(options)
        return {None: End.DONE, 0: End.DONE, 2: End.WRONG}.get(status, End.FAILED)
    except UserError as error:
        return _complain(error, options.debug, End.WRONG)
    except KeyboardInterrupt:
        print("headway: interrupted; the same command continues", file=sys.stderr)
        return End.FAILED
    except CutShort as error:
        return _complain(error, options.debug, End.CUT_SHORT)
    except HeadwayError as error:
        return _complain(error, options.debug, End.FAILED)
    except BrokenPipeError:
        return End.FAILED
    except Exception as error:
        full = faults.full_disk(error)
        if full is not None:
            return _complain(faults.full_words(full, Path.cwd()), options.debug, End.CUT_SHORT)
        text = f"{type(error).__name__}: {error} (a fault of Headway or its surroundings; --debug shows where)"
        return _complain(text, options.debug, End.FAULT)


def _command(name: str) -> Callable[[argparse.Namespace], int | None]:
    with importing():
        from search import commands

    # The module of printing has the name of one command.
    command: Callable[[argparse.Namespace], int | None] = getattr(commands, "papers" if name == "tables" else name)
    return command


def _complain(error: object, debug: bool, end: End) -> End:
    if debug:
        # What libraries raise may name the address that they called.
        print(without_credentials(traceback.format_exc()), end="", file=sys.stderr)
    print(f"headway: error: {without_credentials(str(error))}", file=sys.stderr)
    return end


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headway", description="Searches detection-head designs for any mmdet detector: accuracy against speed."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, *arguments: tuple[str, dict[str, Any]]) -> None:
        command = commands.add_parser(name, help=text, description=text)
        for argument, options in arguments:
            command.add_argument(argument, **options)
        command.add_argument("--debug", action="store_true", help="show tracebacks")

    json = ("--json", {"action": "store_true", "help": "print one JSON document on standard output, nothing else"})
    studies = ("--studies", {"metavar": "DIR", "help": "folder of all studies (default: $HEADWAY_STUDIES or studies)"})
    study_file = ("study", {"metavar": "STUDY.yaml", "help": "the study file"})
    study = ("study", {"metavar": "STUDY", "help": "a study that was run: name, folder or study file"})
    settings = ("--set", {"action": "append", "default": [], "metavar": "KEY=VALUE", "help": "override, repeatable"})
    extend = ("--extend", {"action": "store_true", "help": "let the budget have grown, but for its epochs"})
    address = ("--address", {"metavar": "ADDR", "help": "a running Ray cluster (default: this machine)"})
    size = ("--size", {"metavar": "HxW", "default": "800x1344", "help": "input, height x width (default: 800x1344)"})

    add("demo", "a small study on the embedded data", settings, studies, json)
    restarts_help = "start the driver again when it dies, at most N times without any trial ending (default: 0)"
    restarts = ("--restarts", {"type": int, "default": 0, "metavar": "N", "help": restarts_help})
    add("run", "start a study or continue it", study_file, settings, extend, address, restarts, studies, json)
    add(
        "submit",
        "start or continue a study as a Ray job on a cluster",
        study_file,
        settings,
        extend,
        restarts,
        ("--address", {"required": True, "metavar": "URL", "help": "the cluster's dashboard, http://HOST:8265"}),
        ("--studies", {"metavar": "DIR", "help": "folder of all studies, absolute, shared by the nodes"}),
        ("--working-dir", {"metavar": "DIR", "help": "ship its contents along: modules that a base config imports"}),
        ("--detach", {"action": "store_true", "help": "print the job's id and leave it to itself"}),
        json,
    )
    add("plan", "dry run: space, corners, cost and time, what cannot be exported", study_file, settings, json)
    follow = ("--follow", {"action": "store_true", "help": "show it again every few seconds while the study runs"})
    add("status", "what runs where, trials by state, failures, estimated end", study, follow, studies, json)
    add("front", "the accuracy-speed front", study, studies, json)
    add(
        "compare",
        "studies side by side: fronts, difference in hypervolume with its interval, who dominates whom",
        ("studies_compared", {"metavar": "STUDY", "nargs": "+", "help": "two or more: name, folder or study file"}),
        ("--out", {"metavar": "FILE.html", "help": "write the plot as a page, and as a PNG beside it"}),
        studies,
        json,
    )
    seeds_help = "seeds of a point, the study's own among them (default: 3)"
    seeds = ("--seeds", {"type": int, "default": 3, "metavar": "K", "help": seeds_help})
    add("confirm", "train the front again with other seeds, time it together", study, seeds, address, studies, json)
    report_out = ("--out", {"metavar": "FILE.html", "help": "the page (default: report.html in the study's folder)"})
    add("report", "one page that tells what was found, why, and what not to trust", study, report_out, studies, json)
    add("sync", "bring what MLflow misses of a study that is not running", study, studies, json)
    port = ("--port", {"type": int, "default": 5000, "help": "port on 127.0.0.1 (default: 5000)"})
    add("ui", "serve the study's MLflow pages on this machine", study, port, studies)
    picks = "knee, fastest, most_accurate, weighted or a trial number (default: knee)"
    limit: dict[str, Any] = {"action": "append", "default": [], "metavar": "METRIC=NUMBER"}
    picking = (
        ("--pick", {"help": picks}),
        ("--above", {**limit, "help": "pick among designs with at least this, bbox_mAP=0.4 for 40 %%; repeatable"}),
        ("--under", {**limit, "help": "pick among designs with at most this, latency_ms=20; repeatable"}),
        (
            "--weight",
            {**limit, "help": "weights of --pick weighted, bbox_mAP=2; figures count from 0 to 1; repeatable"},
        ),
    )
    add("choose", "pick a design, with the reason and its neighbours on the front", study, *picking, studies, json)
    out_help = "folder of the bundle, new or empty; with --all of all bundles, which an earlier --all may have begun"
    onnx_help = "outputs of model.onnx: raw (the head's), nms (detections) or none (no such file) (default: raw)"
    add(
        "export",
        "write a design, or the whole front, as bundles that run without Headway",
        study,
        *picking,
        ("--all", {"action": "store_true", "help": "every point of the front, a folder each, and an index"}),
        ("--out", {"required": True, "metavar": "DIR", "help": out_help}),
        ("--onnx", {"default": "raw", "metavar": "KIND", "help": onnx_help}),
        ("--register", {"metavar": "NAME", "help": "put it into MLflow's model registry, too, under this name"}),
        studies,
        json,
    )
    add(
        "register",
        "put bundles of a study into MLflow's model registry",
        study,
        ("bundles", {"metavar": "BUNDLE", "nargs": "+", "help": "a bundle"}),
        ("--name", {"required": True, "help": "name of the registered model; each bundle becomes a version"}),
        studies,
        json,
    )
    add(
        "verify",
        "run bundles again in a clean process and compare with their receipts",
        ("bundles", {"metavar": "DIR", "nargs": "+", "help": "a bundle"}),
        ("--all", {"action": "store_true", "help": "all bundles in DIR, as export --all wrote them"}),
        ("--annotations", {"metavar": "FILE", "help": "validation annotations (default: those it was searched with)"}),
        ("--images", {"metavar": "DIR", "help": "their image folder"}),
        ("--against", {"metavar": "DIR", "help": "the baseline's bundle, where latency depends on the image"}),
        ("--python", {"metavar": "FILE", "help": "measure AP with another environment's interpreter, which has mmdet"}),
        ("--no-latency", {"action": "store_true", "help": "do not measure the latency ratio"}),
        json,
    )
    add(
        "draw",
        "draw what a bundle finds in images: boxes, key parts, query maps",
        ("bundle", {"metavar": "BUNDLE", "help": "the bundle"}),
        ("images", {"nargs": "+", "metavar": "IMAGE", "help": "image files, or folders of them"}),
        ("--out", {"default": "pictures", "metavar": "DIR", "help": "where to write PNG files (default: pictures)"}),
        ("--score", {"type": float, "default": 0.3, "help": "least score of what is drawn (default: 0.3)"}),
        ("--objects", {"type": int, "default": 12, "help": "most objects with key parts an image (default: 12)"}),
        ("--limit", {"type": int, "default": 50, "help": "most images of a folder (default: 50)"}),
        json,
    )
    add(
        "tables",
        "the papers' tables beside what Headway counts and what was trained",
        ("paper", {"nargs": "?", "metavar": "PAPER", "help": "slimhead, ddod or querydet (default: all)"}),
        ("--table", {"type": int, "metavar": "N", "help": "only the tables of this number"}),
        studies,
        json,
    )
    add(
        "record",
        "make a table of a study that was run, which replay searches in",
        study,
        ("--out", {"required": True, "metavar": "TABLE.parquet", "help": "the table"}),
        studies,
        json,
    )
    add(
        "replay",
        "search in a recorded table in simulated time, once a seed",
        ("table", {"metavar": "TABLE", "help": "what record wrote"}),
        ("--sampler", {"metavar": "NAME", "help": "sampler.name (default: a study file's)"}),
        ("--seeds", {"type": int, "default": 20, "metavar": "N", "help": "searches, seeds 0 to N-1 (default: 20)"}),
        ("--rungs", {"metavar": "METHOD", "help": "like_speed, mo_asha or none (default: a study file's)"}),
        ("--first", {"type": int, "metavar": "N", "help": "rungs.first"}),
        ("--factor", {"type": int, "metavar": "N", "help": "rungs.factor"}),
        ("--workers", {"type": int, "default": 4, "metavar": "N", "help": "trials side by side (default: 4)"}),
        ("--trials", {"type": int, "metavar": "N", "help": "budget.trials (default: as many as the table has)"}),
        ("--out", {"metavar": "FILE.json", "help": "write the result with each seed's curve"}),
        json,
    )
    add("families", "the design families and their knobs", json)
    base = ("--base", {"required": True, "help": "mmdet::PATH, headway::NAME or a config file"})
    file_out = ("--out", {"required": True, "metavar": "FILE.py", "help": "the patched config"})
    add("patch", "write a base config with a design in it", base, settings, file_out, json)
    add(
        "profile",
        "multiply-adds and parameters of a config by part and level, and its latency",
        ("config", {"metavar": "CONFIG", "help": "mmdet::PATH, headway::NAME or a config file"}),
        ("--against", {"metavar": "CONFIG", "help": "compare with this one"}),
        size,
        ("--latency", {"action": "store_true", "help": "measure latency, interleaved with --against (or itself)"}),
        ("--pairs", {"type": int, "default": 10, "help": "least number of interleaved pairs (default: 10)"}),
        (
            "--dtype",
            {"choices": DTYPES, "default": "float32", "help": "what is timed predicts in it (float32)"},
        ),
        json,
    )
    add(
        "selftest",
        "how far two measurements of the same latency lie apart on this machine (A/A test)",
        ("what", {"choices": ["speed"], "help": "what is tested"}),
        ("--study", {"metavar": "STUDY.yaml", "help": "take base, size, device, dtype and pairs from a study file"}),
        ("--base", {"help": "mmdet::PATH, headway::NAME or a config file (default: headway::gfl_tiny)"}),
        ("--size", {"metavar": "HxW", "help": "input, height x width (default: 256x256)"}),
        ("--device", {"choices": ["cpu", "cuda"], "help": "default: cpu"}),
        ("--dtype", {"choices": DTYPES, "help": "what the model predicts in (default: float32)"}),
        ("--threads", {"type": int, "metavar": "N", "help": "CPU threads of the model (default: 1)"}),
        ("--pairs", {"type": int, "metavar": "N", "help": "least number of interleaved pairs (default: 9)"}),
        ("--seconds", {"type": float, "metavar": "S", "help": "time of a measurement beyond these (default: 5)"}),
        ("--repeats", {"type": int, "default": 5, "metavar": "R", "help": "measurements of each row (default: 5)"}),
        ("--out", {"metavar": "FILE.json", "help": "write the result with each measurement"}),
        json,
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
