"""What was searched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from analysis.explain.settings import setting
from analysis.labels import dtype_of, knob_value
from analysis.report.findings import Findings
from analysis.report.words import capital, duration, listed, plain, several

_FEW_VALUES = 12


def searched(found: Findings) -> list[tuple[str, str]]:
    """What was searched, by topic."""
    study = found.context.study
    told = [("Data", _data(found)), ("Base", _base(study)), ("Space", _space(found)), ("Aim", _aim(found))]
    told += [("Budget", _budget(found)), ("Search", _search(study)), ("Machine", _machine(found))]
    told.append(("Time", _time(found)))
    return [(topic, text) for topic, text in told if text]


def _data(found: Findings) -> str:
    report, data = found.context.data, found.context.study["data"]
    width, height = data["size"]
    fitted = f"Images are resized to fit into {width} x {height} px."
    what = "Embedded handwritten digits" if data.get("digits") else "COCO-format data"
    if report is None:
        return f"{what}, which could not be read when this page was made. {fitted}"
    sizes = listed([f"{count:,} {size}" for size, count in report.val.sizes.items()])
    classes = f"{several(len(report.classes), 'class', 'classes')} ({listed(report.classes)})"
    return (
        f"{what}: {report.train.images:,} images with {report.train.boxes:,} boxes to train on, {report.val.images:,} "
        f"with {report.val.boxes:,} boxes ({sizes}) to validate on, of {classes}. {fitted}"
    )


def _base(study: Mapping[str, Any]) -> str:
    start = study["weights"]["from"]
    said = {
        "scratch": "every trial starts from the same initial weights",
        "baseline": f"every trial continues from one training of the base of {study['weights']['epochs']} epochs",
    }.get(start, "every trial starts from the weights of a given checkpoint")
    return f"{study['base']}; {said}."


def _space(found: Findings) -> str:
    families = list(found.context.study.get("space") or {})
    if found.context.study.get("designs"):
        text = f"{several(len(found.context.study['designs']), 'design')} that the study file lists"
    else:
        text = f"{'Families' if len(families) > 1 else 'Family'} {listed(families)}"
    size = found.context.settings
    if size is not None:
        text += "; infinitely many designs" if math.isinf(size) else f"; {size:,.0f} designs at most"
    return f"{text}. The designs that were tried differ in {several(len(found.knobs), 'knob')}."


def _aim(found: Findings) -> str:
    wanted = [f"{'more' if item.maximize else 'less'} {plain(item)}" for item in found.objectives]
    held = found.context.study.get("constraints") or []
    return f"{capital(listed(wanted))}{'; must hold: ' + '; '.join(held) if held else ''}."


def _budget(found: Findings) -> str:
    budget = found.context.study["budget"]
    text = f"{several(budget['trials'], 'trial')} of {several(budget['epochs'], 'epoch')}"
    for key, unit in (("hours", "hours"), ("gpu_hours", "GPU hours")):
        text += f", {budget[key]:g} {unit} at most" if budget.get(key) else ""
    rungs = found.context.rungs
    if rungs:
        epochs = f"epoch{'s' if len(rungs) > 1 else ''} {listed([str(rung) for rung in rungs])}"
        part = (found.context.study.get("rungs") or {}).get("val_images")
        where = f" Epochs before the last were validated on {several(part, 'image')} at most." if part else ""
        return f"{text}; trials were compared after {epochs}, and the weaker stopped.{where}"
    return f"{text}; no trial was stopped early."


def _search(study: Mapping[str, Any]) -> str:
    if study.get("designs"):
        return f"No sampler; seed {study['seed']}."
    return f"Sampler {study['sampler']['name']}; seed {study['seed']}."


def _machine(found: Findings) -> str:
    def seen(name: str) -> list[str]:
        known = [str(trial.attrs[name]) for trial in found.trials if trial.attrs.get(name)]
        return list(dict.fromkeys(known))

    told = []
    if seen("device"):
        kind = (found.context.study.get("training") or {}).get("dtype")
        mixed = f" in mixed precision ({kind})" if kind not in (None, "float32") else ""
        told.append(f"Trained on {listed(seen('device'))}{mixed}.")
    speed = found.context.study["speed"]
    if seen("speed_device"):
        size = next((trial.attrs["count_size"] for trial in found.trials if trial.attrs.get("count_size")), None)
        shape = f" at {size[0]} x {size[1]} px (height x width)" if size else ""
        threads = seen("speed_threads")
        cores = (
            f", {listed(threads)} thread{'s' if threads != ['1'] else ''}"
            if threads and "cpu" in seen("speed_kind")
            else ""
        )
        dtype = dtype_of(found.context.study)
        told.append(
            f"Latency on {listed(seen('speed_device'))}{cores}{shape}, batch {speed['batch']}, "
            f"{'with' if speed['postprocess'] else 'without'} decoding and NMS, interleaved with the baseline."
            + ("" if dtype == "float32" else f" Detectors predict in {dtype}, where accuracy and latency are measured.")
        )
    versions: Mapping[str, str] = next(
        (trial.attrs["versions"] for trial in found.trials if trial.attrs.get("versions")), {}
    )
    if versions:
        told.append(f"{', '.join(f'{name} {number}' for name, number in versions.items())}.")
    return " ".join(told)


def _time(found: Findings) -> str:
    hours = math.fsum(trial.compute_hours for trial in found.trials)
    text = f"{duration(hours)} in trials" if hours else ""
    if found.context.seconds_run:
        run = duration(found.context.seconds_run / 3600)
        text += f"; the search ran for {run}" if text else f"The search ran for {run}"
    return f"{text}." if text else ""


def knob_rows(found: Findings) -> list[tuple[str, str, int]]:
    """Gives each knob that varies with the values that were tried, and in how many trials it was."""
    rows = []
    proposed = [trial for trial in found.trials if not trial.baseline]
    for name in found.knobs:
        tried = {repr(value): value for trial in found.points if (value := setting(trial, name)) is not None}
        tried |= {repr(value): value for trial in proposed if (value := setting(trial, name)) is not None}
        known = list(tried.values())
        if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in known):
            known.sort()
        else:
            known.sort(key=lambda value: (len(value) if isinstance(value, (list, tuple)) else 0, str(value)))
        if len(known) > _FEW_VALUES and isinstance(known[0], (int, float)):
            text = f"{len(known)} values from {knob_value(known[0])} to {knob_value(known[-1])}"
        else:
            text = " | ".join(knob_value(value) for value in known[:_FEW_VALUES])
            text += f" | {len(known) - _FEW_VALUES} more" if len(known) > _FEW_VALUES else ""
        rows.append((name, text, sum(setting(trial, name) is not None for trial in proposed)))
    return rows
