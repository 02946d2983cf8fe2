"""What each command does: calls the parts and prints what they give."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from search import api, tables
from search.folder import find_study, studies_root
from search.store import Store
from search.study import Study, load, parse_assignment
from spaces.errors import UserError, choices, unknown

_FOLLOW_SECONDS = 5.0


@contextlib.contextmanager
def _quiet_stdout(active: bool) -> Iterator[None]:
    """Sends what libraries print to standard error while a JSON document is being made."""
    if not active:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _emit(document: Any) -> None:
    json.dump(document, sys.stdout, indent=2, default=str, allow_nan=False)
    sys.stdout.write("\n")


def demo(options: argparse.Namespace) -> int | None:
    """``headway demo``."""
    # Beside the packages, both in a checkout and where it is installed.
    return _run(Path(__file__).parents[1] / "recipes/demo.yaml", options, address=None, extend=False)


def run(options: argparse.Namespace) -> int | None:
    """``headway run STUDY.yaml``."""
    if options.restarts < 0:
        raise UserError(f"--restarts: must be 0 or more, but got {options.restarts}.")
    if options.restarts:
        return _supervised(options)
    return _run(Path(options.study), options, address=options.address, extend=options.extend)


def submit(options: argparse.Namespace) -> int | None:
    """``headway submit STUDY.yaml``."""
    study = load(Path(options.study), options.set)
    if study.placeholders:
        from search.engine import fill_in

        raise UserError(f"data: {fill_in(study)}")
    studies = options.studies or os.environ.get("HEADWAY_STUDIES")
    if not studies or not os.path.isabs(studies):
        studies_root(studies)  # what is wrong with an object store
        raise UserError(
            "--studies: must be an absolute folder that all nodes of the cluster share, but got "
            f"{repr(studies) if studies else 'none'}."
        )
    api.tell_of_code(study)
    with _quiet_stdout(options.json):
        from search.ray_adapter.jobs import Submitter

        own = Path(options.working_dir) if options.working_dir else None
        submitter = Submitter(options.address)
        job = submitter.submit(study, Path(studies), extend=options.extend, restarts=options.restarts, own=own)
    again, stop = job.ray_command("logs", "--follow"), job.ray_command("stop")
    document = {"job": job.id, "address": job.address, "study": study.name, "follow": again, "stop": stop}
    log = sys.stderr if options.json else sys.stdout
    print(f"{job.id}\n  follow: {again}\n  stop:   {stop}", file=log, flush=True)
    if options.detach:
        if options.json:
            _emit(document)
        return None
    try:
        ended = submitter.follow(job, lambda text: print(text, end="", file=log, flush=True))
    except KeyboardInterrupt:
        print(f"\nheadway: the job goes on\n  follow: {again}\n  stop:   {stop}", file=sys.stderr)
        return 1
    if options.json:
        _emit({**document, "status": ended.status, "exit_status": ended.exit_status})
    if ended.status == "SUCCEEDED":
        return None
    print(
        f"headway: {job.id}: {ended.status}: {ended.message.splitlines()[0] if ended.message else ''}", file=sys.stderr
    )
    return ended.exit_status or 1


def _run(path: Path, options: argparse.Namespace, *, address: str | None, extend: bool) -> int | None:
    handle = api.Study.load(path, options.set, studies=options.studies)
    study, folder = handle.file, handle.folder
    with _quiet_stdout(options.json):
        outcome = handle.run(address=address, extend=extend)
    rows = tables.rows(outcome.records, study)
    if options.json:
        _emit({**tables.summary(outcome.records, study, folder), "front": rows})
    else:
        tables.print_front(rows, outcome.records, study)
        tables.print_saved(outcome.records, study)
        if outcome.note:
            print(f"Ended early: {outcome.note}.")
        name = f"{study.name} --studies {options.studies}" if options.studies else study.name
        print(f"\nThe plot:  {folder / 'pareto.html'}")
        print(f"In MLflow: headway ui {name}")
        print(f"Ship one:  headway export {name} --pick knee --out bundles/{study.name}")
    if not outcome.finished:
        print("headway: interrupted; the same command continues", file=sys.stderr)
        return 1
    return None


def _supervised(options: argparse.Namespace) -> int:
    from search.supervise import child_command, supervise

    study = load(Path(options.study), options.set)
    folder = studies_root(options.studies) / study.name

    def ended() -> int | None:
        # Whatever keeps the store from being read now is for the driver to tell.
        with contextlib.suppress(Exception):
            return sum(record.state.finished for record in Store.read(folder, study).records())
        return None

    # The last word on an option counts.
    end = options.arguments.index("--") if "--" in options.arguments else len(options.arguments)
    arguments = [*options.arguments[:end], "--restarts", "0", *options.arguments[end:]]
    return supervise(
        child_command(arguments),
        options.restarts,
        ended=ended,
        say=lambda text: print(f"headway: {text}", file=sys.stderr, flush=True),
    )


def plan(options: argparse.Namespace) -> None:
    """``headway plan STUDY.yaml``."""
    study = api.Study.load(options.study, options.set)
    with _quiet_stdout(options.json):
        made = study.plan()
    if options.json:
        _emit(made.to_json())
    else:
        tables.print_plan(made, study.file)


def status(options: argparse.Namespace) -> None:
    """``headway status STUDY``."""
    from search.status import read_status, show

    if options.follow and options.json:
        raise UserError("--follow: must not go with --json, which prints one document.")
    folder, study, store = _open(options)
    while True:
        found, records = read_status(folder, study, store)
        if options.json:
            _emit(found)
            return
        if options.follow:
            tables.new_console().clear()
        show(found, records, study)
        if not (options.follow and found["running"]):
            return
        time.sleep(_FOLLOW_SECONDS)


def front(options: argparse.Namespace) -> None:
    """``headway front STUDY``."""
    study = api.Study.open(options.study, studies=options.studies)
    records = study.records()
    rows = tables.rows(records, study.file)
    if options.json:
        _emit(rows)
    else:
        tables.print_front(rows, records, study.file)


def compare(options: argparse.Namespace) -> None:
    """``headway compare STUDY STUDY...``."""
    from search.comparing import show

    found = api.compare(*options.studies_compared, studies=options.studies)
    written = found.write(options.out) if options.out else ()
    if options.json:
        _emit({**found.comparison.to_json(), "files": [str(path) for path in written]})
        return
    show(found.comparison)
    for path in written:
        print(path)


def confirm(options: argparse.Namespace) -> int | None:
    """``headway confirm STUDY``."""
    study = api.Study.open(options.study, studies=options.studies)
    with _quiet_stdout(options.json):
        outcome = study.confirm(seeds=options.seeds, address=options.address)
    if options.json:
        _emit(outcome.document)
    else:
        tables.print_confirmed(outcome.document, study.file)
    if not outcome.finished:
        print("headway: interrupted; the same command continues", file=sys.stderr)
        return 1
    return None


def report(options: argparse.Namespace) -> None:
    """``headway report STUDY``."""
    from search.report import write_report

    folder, study, store = _open(options)
    with _quiet_stdout(options.json):
        found = write_report(study, folder, store, Path(options.out) if options.out else None)
    if options.json:
        _emit(found)
    else:
        print(f"The report: {found['report']}")


def sync(options: argparse.Namespace) -> None:
    """``headway sync STUDY``."""
    from search.confirm import confirmed
    from search.delivery import deliver, tracking_uri
    from search.folder import claimed
    from search.study_lock import held
    from search.tracking import public_uri

    folder, study = find_study(options.study, studies_root(options.studies))
    with claimed(folder), held(study.storage, study.name), _quiet_stdout(options.json):
        added = deliver(study, folder, confirmed(Store.read(folder, study)))
    document = {
        "study": study.name,
        "mlflow": public_uri(tracking_uri(study, folder)),
        "trials": sorted(added.trials),
        "runs": added.runs,
        "figures": added.figures,
    }
    if options.json:
        _emit(document)
    elif not (added.trials or added.figures):
        print(f"{study.name}: nothing was missing in MLflow at {document['mlflow']}.")
    else:
        print(
            f"{study.name}: {added.figures} figures of {len(added.trials)} trials, {added.runs} of them new, "
            f"were added to MLflow at {document['mlflow']}."
        )


def _open(options: argparse.Namespace) -> tuple[Path, Study, Store]:
    folder, study = find_study(options.study, studies_root(options.studies))
    return folder, study, Store.read(folder, study)


def ui(options: argparse.Namespace) -> int:
    """``headway ui STUDY``."""
    from search.tracking import default_uri, find_run, page_url, ui_command, ui_environment

    folder, study = find_study(options.study, studies_root(options.studies))
    uri = study.tracking.uri or default_uri(folder)
    if not 1 <= options.port <= 65535:
        raise UserError(f"--port: must lie in [1, 65535], but got {options.port}.")
    found = find_run(uri=uri, experiment=study.tracking.experiment or study.name, study_folder=folder)
    if found is None:
        raise UserError(f"{study.name}: is not in MLflow at {folder}; 'headway run' puts it there in its first minute.")
    if uri.startswith("http"):
        print(f"The plot: {page_url(uri, *found)}")
        return 0
    print(f"The plot: {page_url(f'http://127.0.0.1:{options.port}', *found)}\nCtrl-C ends the server.", flush=True)
    environment = {**os.environ, **ui_environment(uri)}
    return subprocess.run(ui_command(uri, options.port), env=environment, check=False).returncode


def choose(options: argparse.Namespace) -> None:
    """``headway choose STUDY``."""
    from search.choosing import choose_by

    choice = choose_by(options, _open(options)[2])
    if options.json:
        _emit(choice.to_json())
    else:
        print(choice)


def export(options: argparse.Namespace) -> int | None:
    """``headway export STUDY``."""
    from search.choosing import choose_by, given

    folder, study, store = _open(options)
    out = Path(options.out)
    if options.register is not None:
        from search.tracking.registry import check_name

        check_name(options.register, "--register")
    if options.all:
        if given(options):
            raise UserError(f"--all: is the whole front and must not go with {given(options)}.")
        with _quiet_stdout(options.json):
            from search.exporting import export_whole_front

            found = export_whole_front(store, study=study, folder=folder, out=out, onnx=options.onnx)
        bundles = [out / one.folder for one in found if one.state != "failed"]
        document: dict[str, Any] = {"out": str(out.absolute()), "bundles": [vars(one) for one in found]}
        document["failed"] = len(found) - len(bundles)
    else:
        choice = choose_by(options, store)
        with _quiet_stdout(options.json):
            from search.exporting import export_choice

            bundles = [export_choice(choice, store.records(), study=study, folder=folder, out=out, onnx=options.onnx)]
        document = {"bundle": str(bundles[0]), **choice.to_json()}
    if not options.json:
        if options.all:
            tables.print_exported(found, study.name, out)
        else:
            print(f"{choice}\nThe bundle: {bundles[0]}\nCheck it: headway verify {bundles[0]}", flush=True)
    from search.exporting import without_onnx

    document["without_onnx"] = without_onnx(bundles)
    if not options.json:
        for lacking in document["without_onnx"]:
            print(f"No model.onnx in {lacking['bundle']}: {lacking['reason']}.", flush=True)
    if options.register is not None:
        document["registered"] = _register(options, bundles, options.register, folder, study, store)
    if options.json:
        _emit(document)
    return 1 if document.get("failed") else None


def register(options: argparse.Namespace) -> None:
    """``headway register STUDY BUNDLE...``."""
    folder, study, store = _open(options)
    done = _register(options, [Path(bundle) for bundle in options.bundles], options.name, folder, study, store)
    if options.json:
        _emit(done)


def _register(
    options: argparse.Namespace, bundles: list[Path], name: str, folder: Path, study: Study, store: Store
) -> list[dict[str, Any]]:
    with _quiet_stdout(options.json):
        from search.registering import register_bundles

        done = register_bundles(bundles, name=name, study=study, folder=folder, store=store)
    if not options.json:
        for bundle, one in zip(bundles, done, strict=True):
            aliases = f" ({', '.join(one.aliases)})" if one.aliases else ""
            there = "" if one.new else ", registered before"
            print(f"{bundle.name}: models:/{one.name}/{one.version}{aliases}{there}")
    return [{"bundle": str(bundle), **vars(one)} for bundle, one in zip(bundles, done, strict=True)]


def verify(options: argparse.Namespace) -> int:
    """``headway verify DIR...``."""
    from search.exporting import verified

    with _quiet_stdout(options.json):
        documents = verified(options, say=None if options.json else lambda text: print(text, flush=True))
    good = sum(document["ok"] for document in documents)
    several = options.all or len(options.bundles) > 1
    if options.json:
        _emit({"ok": good == len(documents), "bundles": documents} if several else documents[0])
    elif several:
        print(f"{good} of {len(documents)} bundles verified.")
    return 0 if good == len(documents) else 1


def draw(options: argparse.Namespace) -> None:
    """``headway draw BUNDLE IMAGE...``."""
    from dataclasses import asdict

    from analysis.draw import Drawn, choose_images, draw_bundle

    out = Path(options.out)

    def progress(done: int, total: int, one: Drawn | None) -> None:
        if one is not None:
            print(f"[{done}/{total}] {one.image}: {len(one.pictures)} pictures", file=sys.stderr, flush=True)
            return
        for name, left in chosen.left.items():
            print(f"{name}: the first {options.limit} images by name, {left} left out (--limit)", file=sys.stderr)
        print(f"loading {options.bundle}", file=sys.stderr, flush=True)

    with _quiet_stdout(options.json):
        chosen = choose_images([Path(word) for word in options.images], limit=options.limit, out=out)
        found = draw_bundle(
            Path(options.bundle),
            chosen.images,
            out=out,
            score=options.score,
            objects=options.objects,
            progress=progress,
        )
    if options.json:
        _emit({"out": str(out.absolute()), "score": options.score, "images": [asdict(one) for one in found]})
    else:
        tables.print_drawn(found, options.score, out)


def record(options: argparse.Namespace) -> None:
    """``headway record STUDY``."""
    table = api.Study.open(options.study, studies=options.studies).record(options.out)
    document = {"table": str(table.path), "study": table.name, "designs": len(table.table.entries), **table.table.about}
    if options.json:
        _emit(document)
    else:
        tables.print_recorded(document, table.path)


def replay(options: argparse.Namespace) -> None:
    """``headway replay TABLE``."""
    from search.replay import write_result

    settings = {name: getattr(options, name) for name in ("sampler", "rungs", "first", "factor", "trials")}
    with _quiet_stdout(options.json):
        table = api.Recording(options.table)
        found = table.replay(seeds=options.seeds, workers=options.workers, **settings).document
    if options.out:
        write_result(found, Path(options.out))
    if options.json:
        _emit({key: value for key, value in found.items() if key != "runs"})
    else:
        tables.print_replayed(found)


def families(options: argparse.Namespace) -> None:
    """``headway families``."""
    from spaces.base import BackboneFacts, BaseFacts, RoiFacts
    from spaces.registry import families as all_families

    # Knobs depend on the pyramid and the depth of the towers; the common ones are shown.
    pyramid = (8, 16, 32, 64, 128)
    resnet = BackboneFacts("ResNet", (3, 4, 6, 3), basic=False)
    gfl = BaseFacts("GFL", "GFLHead", pyramid, 4, False, finer=1, tower_norm="GN", backbone=resnet)
    retina = BaseFacts("RetinaNet", "RetinaHead", pyramid, 4, True, priors=9, finer=1, backbone=resnet)
    faster = BaseFacts(
        "FasterRCNN", "RPNHead", (4, 8, 16, 32, 64), 1, True, ("rpn",), "rpn_head", priors=3, backbone=resnet,
        roi=RoiFacts("StandardRoIHead", ("Shared2FCBBoxHead",), 256),
    )  # fmt: skip
    rows = [
        {
            "name": family.name,
            "title": family.title,
            "paper": family.paper,
            "heads": list(family.heads),
            "box_heads": list(family.box_heads),
            "backbones": list(family.backbones),
            "conflicts": dict(family.conflicts),
            "not_exportable": [{"format": limit.format, "reason": str(limit)} for limit in family.export_limits],
            "knobs": [
                {**knob.to_json(), "legal": knob.legal()}
                for base in [base for base in (gfl, retina, faster) if not family.refusal(base)][:1]
                for knob in family.knobs(base)
            ],
        }
        for family in all_families().values()
    ]
    if options.json:
        _emit(rows)
    else:
        tables.print_families(rows)


def papers(options: argparse.Namespace) -> None:
    """``headway tables``."""
    from analysis.published import PAPERS
    from analysis.published import tables as published
    from search.papers import LEGEND, Comparison

    if options.paper is not None and options.paper not in PAPERS:
        raise unknown("tables", options.paper, PAPERS)
    chosen = published(options.paper, options.table)
    if not chosen:
        numbers = sorted({table.number for table in published(options.paper)})
        raise UserError(f"--table: must be {choices(numbers)}, but got {options.table}.")
    with _quiet_stdout(True):
        comparison = Comparison(studies_root(options.studies), lambda text: print(text, file=sys.stderr, flush=True))
        found = [comparison.table(table) for table in chosen]
    if options.json:
        _emit({"legend": LEGEND, "papers": PAPERS, "tables": found})
    else:
        tables.print_published(found, LEGEND)


def patch(options: argparse.Namespace) -> None:
    """``headway patch --base BASE --set family.knob=value --out FILE.py``."""
    from spaces.base import facts
    from spaces.space import full_space

    design = dict(parse_assignment(text) for text in options.set)
    out = Path(options.out)
    if out.suffix != ".py":
        raise UserError(f"--out: must name a .py file, but got '{options.out}'.")
    with _quiet_stdout(options.json):
        from trainers.config import load_base
        from trainers.profile import patched_base

        base = facts(load_base(options.base).model.to_dict(), f"base {options.base}")
        canonical = full_space(base).canonicalise(design, "--set")
        config = patched_base(options.base, canonical)
        try:
            out.write_text(config.pretty_text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"--out: must be writable, but {out} gives: {error.strerror}.") from error
    if options.json:
        _emit({"base": options.base, "knobs": canonical, "config": str(out)})
    else:
        print(f"{out}: {options.base} with {canonical or 'nothing changed (a neutral design)'}")


def profile(options: argparse.Namespace) -> None:
    """``headway profile CONFIG``."""
    size = parse_size(options.size)
    if options.pairs < 1:
        raise UserError(f"--pairs: must be 1 or more, but got {options.pairs}.")
    with _quiet_stdout(options.json):
        from trainers.profile import profile_config

        found = profile_config(
            options.config,
            against=options.against,
            size=size,
            latency=options.latency,
            pairs=options.pairs,
            dtype=options.dtype,
        )
    if options.json:
        _emit(found)
    else:
        tables.print_profile(found, options.config, options.against)


def selftest(options: argparse.Namespace) -> None:
    """``headway selftest speed``."""
    from search import selftest as tests

    size = parse_size(options.size) if options.size else None
    with _quiet_stdout(options.json):
        found = tests.speed(options, size)
    if options.json:
        _emit(found)
    else:
        tests.print_speed(found)


def parse_size(text: str) -> tuple[int, int]:
    """Reads ``HEIGHTxWIDTH``.

    Raises:
        UserError: It is not two whole numbers of 32 or more.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or min(int(match[1]), int(match[2])) < 32:
        raise UserError(f"--size: must read like 800x1344 (height x width, 32 px or more each), but got '{text}'.")
    return int(match[1]), int(match[2])
