"""The mmdet trainer: builds, counts, times and trains one design."""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook

from spaces import patching
from spaces.errors import HeadwayError
from trainers import checkpoint, faults, files, learning, pictures, rotated, warm
from trainers.config import DataFacts, read_facts, trial_config
from trainers.contract import (
    Lane,
    LaneNeeded,
    Report,
    SpeedRequest,
    TrialFailed,
    TrialInterrupted,
    TrialReport,
    TrialRequest,
)
from trainers.means import PeakMemory, settle
from trainers.team import Team, follow, led
from trainers.weights import copy_matching, read_weights, weights_only

__all__ = ["build_model", "follow", "train"]

# Images of the validation split that the time of a setting of the inference knobs is mapped on.
_MAPPED = 4
_VERSIONS = ("torch", "onedl-mmdetection", "onedl-mmcv", "onedl-mmengine", "mmdet", "mmcv", "mmengine", "pycocotools")


def train(request: TrialRequest, report: Report) -> None:
    """Runs one trial, from its newest good checkpoint where there is one.

    Reports ``counted``, ``timed`` (when asked for), one ``epoch`` after each epoch's validation, its checkpoint being
    on disk, one ``swept`` for each setting of the inference knobs, then ``done``. A continued trial reports ``counted``
    and ``timed`` only when asked to time, and the epoch of its checkpoint again. May be called in any thread.

    A design that learns a part of its network trains the learning network first, reporting its epochs; then come
    ``learned``, ``counted`` and ``timed``, those of the settled network, and its epochs, which are counted on.

    With a shared warm start, the baseline trains that first and reports ``warm`` after each of its epochs, the last one
    again where it is there already.

    Args:
        request: The trial.
        report: Takes the messages; may raise ``StopTrial``.

    Raises:
        TrialFailed: The loss is no number any more, or the design cannot be built or run.
        TrialInterrupted: What is around the trial failed it; see ``trainers.faults``.
        MachineUnfit: The disk is full.
        UserError: The base, the data or the weights cannot be used.
        LaneNeeded: What is due next belongs in another lane.
        MachineUnfit: A foreign process uses the device that latency is measured on.
        StopTrial: ``report`` raised it.
    """
    settle(request.threads)
    request = replace(request, val_batch=request.val_batch or faults.val_batch(Path(request.folder)))
    if request.val_batch is not None:
        report = _noting(report, request.val_batch)
    with faults.told(request), led(request) as team:
        if request.warm is not None and request.number == 0:
            seconds = _warm_up(request, report, team)
            report = _later(report, seconds)
        if patching.learning(request.knobs) is None:
            _Trial(request, report, team).run()
        else:
            _learn_then_train(request, report, team)


def preload() -> None:
    """Imports what a trial needs, before the process runs one."""
    import mmdet.engine
    import mmdet.evaluation
    import mmdet.models  # noqa: F401
    import torch._dynamo  # noqa: F401  (as every optimizer does)

    from trainers import cost, drawing, look, loop, speed, timemap  # noqa: F401


def build_model(config: Config, seed: int, device: str = "cpu", *, initialise: bool = True) -> Any:
    """Builds the detector of a trial's config and initialises its weights from the seed.

    Args:
        config: What ``trial_config`` gave.
        seed: Of the weights.
        device: ``cpu`` or ``cuda``.
        initialise: Whether it gets its initial weights, pretrained ones included; else they come from elsewhere.

    Returns:
        The detector, in training mode.
    """
    import mmdet.models  # noqa: F401  (registers the detectors)
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope
    from mmengine.utils import import_modules_from_strings

    from trainers.loop import quiet, seed_all
    from trainers.memory import channels_last

    quiet()
    init_default_scope(rotated.scope(config))
    import_modules_from_strings(**config.get("custom_imports", {"imports": []}))
    seed_all(seed)
    with weights_only("weights.backbone, or init_cfg of the base"):
        model = MODELS.build(config["model"])
        if initialise:
            model.init_weights()
    # oneDNN trains such convolutions some 10 % faster in this layout; the numbers' meaning does not change.
    return channels_last(model) if device == "cpu" else model.to(device)


def _noting(report: Report, val_batch: int) -> Report:
    """Adds to each report what a trial was validated with that had too little memory."""
    return lambda message: report(replace(message, attrs={**message.attrs, "val_batch": val_batch}))


def _warm_up(request: TrialRequest, report: Report, team: Team | None) -> float:
    """Trains the study's shared warm start, from its newest checkpoint; gives the seconds that it took."""
    begin = time.monotonic()

    def epochs_only(message: TrialReport) -> None:
        if message.phase == "epoch":
            report(warm.report(request, vars(message), message.seconds))

    done = warm.finished(request)
    if done is not None:
        report(warm.report(request, done, time.monotonic() - begin))
        return time.monotonic() - begin
    try:
        _Trial(warm.request(request), epochs_only, team, draw=False).run()
    except TrialFailed as error:
        raise TrialFailed(f"in the shared warm start (weights.from: baseline): {error}") from error
    return time.monotonic() - begin


def _later(report: Report, seconds: float) -> Report:
    """Adds the time of what ran before to each report."""
    return lambda message: report(replace(message, seconds=message.seconds + seconds))


def _learn_then_train(request: TrialRequest, report: Report, team: Team | None) -> None:
    """Runs a trial of two phases, from the newest state of either."""
    first = learning.first_phase(request)
    begin = time.monotonic()
    learned = learning.read(request)
    if learned is None:
        _in_lane(request, "train")
        started: dict[str, float] = {}

        def epochs_only(message: TrialReport) -> None:
            if message.phase == "counted":  # in a start that does not continue; what counts is the settled network
                started.update({key: value for key, value in message.attrs.items() if key == "copied_from_weights"})
            elif message.phase == "epoch":
                report(replace(message, attrs={**message.attrs, **started}))

        _Trial(first, epochs_only, team, draw=False).run()
        learned = _settle(request)
        learning.write(request, learned)
    if request.speed is not None and "learning_latency_ratio" not in learned.metrics:
        _in_lane(request, "speed")
        learned = replace(learned, metrics={**learned.metrics, **_time_learner(request, request.speed, learned)})
        learning.write(request, learned)
    attrs = {"scales": learned.scales, "scale_images": learned.images, "learning_epochs": first.epochs}
    seconds = time.monotonic() - begin
    report(TrialReport(phase="learned", epoch=first.epochs, metrics=learned.metrics, seconds=seconds, attrs=attrs))

    def later(message: TrialReport) -> None:
        epoch = message.epoch + first.epochs if message.phase in ("epoch", "swept", "done") else message.epoch
        report(replace(message, epoch=epoch, seconds=message.seconds + seconds))

    _Trial(learning.second_phase(request, learned), later, team, learned_from=request).run()


def _settle(request: TrialRequest) -> learning.Learned:
    """Observes a trained learning network, settles it, and measures the accuracy before any further training."""
    from trainers import sweep

    first = learning.first_phase(request)
    facts = read_facts(request.data)
    weights, meta = learning.weights(request)
    config = trial_config(first, facts)
    learner = build_model(config, request.seed, request.device)
    learner.load_state_dict(weights)
    scales, images = learning.observe(request, config, learner)
    found = learning.Learned(scales=scales, images=images, metrics={})

    second = learning.second_phase(request, found)
    settled_config = trial_config(second, facts)
    settled = build_model(settled_config, request.seed, request.device)
    patching.check_built(settled, second.knobs)
    copy_matching(patching.translated(second.knobs, weights, settled), settled)
    metrics = {f"learned_{name}": meta["metrics"][name] for name in meta["metrics"] if name.startswith("bbox_mAP")}
    # On the images of the learning network's own figures.
    part = None if request.early_val is None else request.early_val.images
    found_again = sweep.validate(settled_config, settled, part)
    metrics |= {f"decomposed_{name}": value for name, value in found_again.items()}
    return replace(found, metrics=metrics)


def _time_learner(request: TrialRequest, asked: SpeedRequest, learned: learning.Learned) -> dict[str, float]:
    """Measures the latency of the network while it learns."""
    from trainers import foreign, speed

    first, facts = learning.first_phase(request), read_facts(request.data)
    weights, _ = learning.weights(request)
    second = learning.second_phase(request, learned)
    settled = build_model(trial_config(second, facts), request.seed, request.device)
    base = build_model(trial_config(replace(request, knobs={}), facts), request.seed, request.device)
    # Untrained but for what is learned and then settled, as the base is untrained; see _Trial._time.
    timed = build_model(trial_config(first, facts), request.seed, request.device)
    copy_matching(patching.translated(first.knobs, base.state_dict(), timed), timed)
    kept = settled.state_dict()
    copy_matching({name: weight for name, weight in weights.items() if name not in kept}, timed)
    latency = speed.measure(
        timed.to(asked.device),
        base.to(asked.device),
        speed.make_inputs(asked.size, asked.batch),
        pairs=asked.pairs,
        seconds=asked.seconds,
        device=asked.device,
        postprocess=asked.postprocess,
        lease=asked.lease,
        watch=foreign.watch(request, asked),
    )
    return {
        "learning_latency_ratio": latency.ratio,
        "learning_latency_ratio_q1": latency.q1,
        "learning_latency_ratio_q3": latency.q3,
    }


def _in_lane(request: TrialRequest, lane: Lane) -> None:
    """Leaves a start of a trial that belongs in the other lane.

    Raises:
        LaneNeeded: It does.
    """
    if request.lane not in ("any", lane):
        raise LaneNeeded(lane)


class _Trial:
    """One start of a trial, or of one of its phases.

    Args:
        request: What to train.
        report: Takes the messages.
        team: The processes that it trains with, ``None`` for this one alone.
        learned_from: The whole trial's request where this is its second phase.
        draw: Whether pictures are drawn at the end; a learning phase's would be of a network that nobody gets.
    """

    def __init__(
        self,
        request: TrialRequest,
        report: Report,
        team: Team | None,
        *,
        learned_from: TrialRequest | None = None,
        draw: bool = True,
    ) -> None:
        self._request = request
        self._send = report
        self._team = team
        self._learned_from = learned_from
        self._pictures = draw
        self._begin = time.monotonic()
        self._folder = Path(request.folder)
        self._copied: dict[str, float] = {}
        self._untrained: dict[str, Any] = {}

    def run(self) -> None:
        """Counts, times, trains."""
        request = self._request
        self._folder.mkdir(parents=True, exist_ok=True)
        mark = checkpoint.fingerprint(request)
        found = checkpoint.newest(self._folder, mark)
        trained = found is not None and found[1]["meta"]["epoch"] >= request.epochs
        if request.speed is not None:
            _in_lane(request, "speed")
        elif not trained:
            _in_lane(request, "train")
        facts = read_facts(request.data)
        config = trial_config(request, facts)
        files.write_text(self._folder / "config.py", config.pretty_text)

        model = None
        if found is None or request.speed is not None:
            base = self._base(facts)
            model = self._build(config)
            self._start_weights(base, model)
            self._count(model, config)
            if request.speed is not None:
                self._time(model, base)
            del base
        if not trained:
            _in_lane(request, "train")
        if found is not None:
            path, content = found
            meta = content["meta"]
            self._report("epoch", meta["epoch"], meta["metrics"], {**meta["attrs"], "resumed": True})
            if trained:
                model = model or self._build(config)
                model.load_state_dict(content["state_dict"])
                self._finish(config, model, path, meta, facts)
                return
        self._train(config, model or self._build(config), found[1] if found else None, mark, facts)

    def _base(self, facts: DataFacts) -> Any:
        """The base detector with its initial weights."""
        return build_model(
            trial_config(replace(self._request, knobs={}), facts), self._request.seed, self._request.device
        )

    def _build(self, config: Config) -> Any:
        """The design's detector, proved to be the design's."""
        try:
            model = build_model(config, self._request.seed, self._request.device)
        except HeadwayError:
            raise
        except Exception as error:
            raise TrialFailed(f"the detector cannot be built: {faults.brief(error)}") from error
        patching.check_built(model, self._request.knobs)
        return model

    def _start_weights(self, base: Any, model: Any) -> None:
        """Gives a detector the weights that all trials of the study start from."""
        knobs = self._request.knobs
        self._copied["copied_from_base"] = copy_matching(patching.translated(knobs, base.state_dict(), model), model)
        if self._request.speed is not None:
            self._untrained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if self._learned_from is not None and patching.transfers(self._learned_from.knobs):
            weights, _ = learning.weights(self._learned_from)
            self._copied["copied_from_learned"] = copy_matching(patching.translated(knobs, weights, model), model)
        elif self._request.weights != "scratch":
            shared = self._request.weights == "baseline"
            trained = warm.weights(self._request) if shared else read_weights(self._request.weights)
            weights = patching.translated(knobs, trained, model, trained=True)
            self._copied["copied_from_weights"] = copy_matching(weights, model)
            # The base is timed, never trained; the share tells a warm start that fits nothing from one that does.
            if not self._copied["copied_from_weights"]:
                source = "the shared warm start" if shared else self._request.weights
                raise TrialFailed(f"no weight of {source} fits the design by name and shape.")

    def _count(self, model: Any, config: Config) -> None:
        from trainers import cost

        counted = cost.count(model, size=self._request.count_size)
        attrs = {
            **self._copied,
            "backbone": config["headway"]["backbone"],
            "count_size": list(self._request.count_size),
            "cost": counted.to_json(),
            "versions": _versions(),
            "device": device_name(self._request.device),
            "seed": self._request.seed,
        }
        self._report("counted", 0, counted.to_metrics(), attrs)

    def _time(self, model: Any, base: Any) -> None:
        from trainers import foreign, speed, timemap

        asked = self._request.speed
        assert asked is not None
        watch = foreign.watch(self._request, asked)
        baseline = not self._request.knobs
        # Detectors that find more suppress more: both are untrained, whatever training starts from.
        start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self._untrained)
        # One lease for both: who waits for it in between waits as long as another's whole measurement.
        with speed.exclusive(asked.lease) as waited:
            latency = speed.measure(
                model.to(asked.device),
                base.to(asked.device),
                speed.make_inputs(asked.size, asked.batch),
                pairs=asked.pairs,
                seconds=asked.seconds,
                device=asked.device,
                postprocess=asked.postprocess,
                watch=watch,
            )
            spent = timemap.note(
                model,
                lambda prepared, device: speed.detector_pass(
                    prepared,
                    speed.placed(speed.make_inputs(asked.size, asked.batch), device),
                    postprocess=asked.postprocess,
                ),
                device=asked.device,
            )
        model.to(self._request.device).load_state_dict(start)
        self._untrained = {}
        ratios = {"latency_ratio": latency.ratio, "latency_ratio_q1": latency.q1, "latency_ratio_q3": latency.q3}
        if baseline:
            # The base against a second build of itself: its ratio is 1 by definition, and what was measured tells how
            # far two equal detectors lie apart on this machine.
            metrics = dict.fromkeys(ratios, 1.0)
            metrics.update({name.replace("latency", "aa"): value for name, value in ratios.items()})
        else:
            metrics = dict(ratios)
        metrics.update(
            latency_pairs=float(latency.pairs),
            reference_ms=latency.baseline_ms,
            measured_ms=latency.candidate_ms,
        )
        attrs = {"speed_device": device_name(asked.device), "speed_threads": self._request.threads, **watch.attrs}
        attrs["speed_waited"] = round(waited, 3)
        attrs |= spent
        self._report("timed", 0, metrics, attrs)

    def _train(self, config: Config, model: Any, resume: Mapping[str, Any] | None, mark: str, facts: DataFacts) -> None:
        from trainers.loop import EpochEnd, hooks_of

        request = self._request
        peak = PeakMemory(request.device)
        meta: Mapping[str, Any] = {"train_seconds": 0.0, "val_seconds": 0.0}
        if resume:
            meta = resume["meta"]
        elif self._learned_from is not None:
            _, meta = learning.weights(self._learned_from)
        end = EpochEnd(
            folder=self._folder,
            mark=mark,
            earlier=(meta["train_seconds"], meta["val_seconds"]),
            report=lambda epoch, metrics, attrs: self._report("epoch", epoch, metrics, attrs),
            peak_mb=peak.megabytes,
        )
        with self._team.training(config, resume) if self._team else nullcontext():
            self._run(config, model, resume, hooks_of(request.seed, end))
        newest = checkpoint.checkpoints(self._folder)[0][1]
        spent = {"train_seconds": end.train_seconds, "val_seconds": end.val_seconds}
        self._finish(config, model, newest, spent, facts)

    def _run(self, config: Config, model: Any, resume: Mapping[str, Any] | None, hooks: Sequence[Hook]) -> None:
        from trainers.loop import TrialRunner, seed_all

        seed_all(self._request.seed)
        runner = TrialRunner(config, model, resume, together=self._team is not None)
        try:
            runner.add_hooks(hooks)
            try:
                runner.train()
            except (TrialFailed, TrialInterrupted, HeadwayError):
                raise
            except Exception as error:
                where = f"epoch {runner.epoch + 1}"
                raise TrialFailed(f"training broke in {where}: {faults.brief(error)}") from error
        finally:
            runner.close()

    def _sweep(self, path: Path, facts: DataFacts) -> None:
        """Measures each setting of the inference knobs on the trained weights."""
        import torch

        from trainers import cost, foreign, speed, sweep, timemap

        request, asked = self._request, self._request.sweep
        if asked is None or not asked.settings:
            return
        weights = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        validated = sweep.Validated(self._folder, f"{checkpoint.fingerprint(request)} {path.name}")
        base = images = None
        trained = sweep.reference_weights(asked.reference)
        for index, knobs in sorted(asked.settings.items()):
            accuracy = validated.get(index)
            if accuracy is None:
                _in_lane(request, "train")
            elif request.lane == "train" and asked.speed is not None:
                continue
            config = trial_config(replace(request, knobs=knobs), facts)
            files.write_text(self._folder / f"config.{index}.py", config.pretty_text)
            model = build_model(config, request.seed, request.device)
            patching.check_built(model, knobs)
            model.load_state_dict(weights)
            if accuracy is None:
                accuracy = sweep.validate(config, model)
                validated.keep(index, accuracy)
            if asked.speed is None:
                self._report("swept", request.epochs, accuracy, {"index": index})
                continue
            if request.lane == "train":
                continue
            if base is None or images is None:
                base = self._base(facts)
                if trained is not None:
                    base.load_state_dict(trained)
                images = sweep.validation_images(config, model, asked.speed.size, asked.speed.batch, asked.images)
            watch = foreign.watch(request, asked.speed)
            with speed.exclusive(asked.speed.lease):
                latency = speed.measure_on_images(
                    model.to(asked.speed.device),
                    base.to(asked.speed.device),
                    images,
                    pairs=asked.speed.pairs,
                    seconds=asked.speed.seconds,
                    device=asked.speed.device,
                    watch=watch,
                )
                spent = timemap.note(
                    model,
                    functools.partial(speed.images_pass, images=images[:_MAPPED]),
                    device=asked.speed.device,
                )
            metrics = {"latency_ratio": latency.ratio, "latency_ratio_q1": latency.q1, "latency_ratio_q3": latency.q3}
            metrics |= {"latency_pairs": float(latency.pairs), "measured_ms": latency.candidate_ms}
            metrics |= cost.count_predict(model, images)
            attrs = {"index": index, "images": len(images), "reference_trained": trained is not None, **watch.attrs}
            attrs |= spent
            self._report("swept", request.epochs, {**accuracy, **metrics}, attrs)
        if asked.speed is not None:
            _in_lane(request, "speed")

    def _finish(self, config: Config, model: Any, path: Path, spent: Mapping[str, float], facts: DataFacts) -> None:
        """Measures and draws what was trained; the ``model`` has the weights of ``path``."""
        self._sweep(path, facts)
        attrs = {"checkpoint": str(path), "train_seconds": spent["train_seconds"], "val_seconds": spent["val_seconds"]}
        drawn = pictures.note(config, model, self._folder) if self._pictures else {}
        self._report("done", self._request.epochs, {}, attrs | drawn)

    def _report(self, phase: Any, epoch: int, metrics: Mapping[str, float], attrs: Mapping[str, Any]) -> None:
        seconds = time.monotonic() - self._begin
        self._send(TrialReport(phase=phase, epoch=epoch, metrics=dict(metrics), seconds=seconds, attrs=dict(attrs)))


def device_name(device: str) -> str:
    """Names a device."""
    if device == "cuda":
        import torch

        return str(torch.cuda.get_device_name())
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
