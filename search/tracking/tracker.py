"""The tracker: the study is a parent run in MLflow, each trial a child run.

The study's store is the truth and MLflow a picture of it. Everything written here can be written again without
doubling anything, and ``Tracker.reconcile`` repairs whatever a kill left behind.
"""

from __future__ import annotations

import hashlib
import logging
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from analysis import pareto, plots
from analysis.labels import counts, short
from analysis.record import Objective, TrialRecord, TrialState, further
from search.tracking.content import Content, Point, content_of, milliseconds, volume_metrics
from search.tracking.pages import is_database, page_url, public_uri
from search.tracking.server import FAILURES, find_runs, history, lead_to, open_experiment, open_parent, reach, reason
from search.tracking.views import view_url
from spaces.errors import UserError
from trainers.pictures import FOLDER as PICTURES

# After search.tracking.server, which sets the environment that mlflow reads on import.
from mlflow.entities import Metric, Param, Run, RunTag  # isort: skip
from mlflow.tracking import MlflowClient  # isort: skip

RETRY_SECONDS = 60.0
_BATCH = 800  # MLflow takes at most 1,000 metrics, 100 parameters and 100 tags at once
_COLOURS = {"baseline": "#D55E00", "true": "#0072B2", "false": "#9A9A9A"}
_SHOWN = 3  # pictures in a run's description
# Fingerprint of what the run of an ended trial holds. It is written last: where it stands, all else does, and a restart
# need not read the run's series. A running trial has none, as it would be one more write an epoch.
_MARK = "headway.record"
_log = logging.getLogger("headway.tracking")

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass
class _Child:
    """What is known of a child run.

    Attributes:
        run_id: As MLflow names it.
        status: As MLflow words it.
        written: Fingerprint of the content that it holds, "" where that is not known for certain.
        params: Its parameters.
        tags: Its tags.
        names: Of its series.
        logged: Its series, ``None`` until they were read, and again once the trial has ended.
    """

    run_id: str
    status: str
    written: str = ""
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    logged: dict[Point, float] | None = None

    @classmethod
    def of(cls, run: Run) -> _Child:
        """Reads a run that was there before."""
        data = run.data
        mark = data.tags.get(_MARK, "")
        return cls(run.info.run_id, run.info.status, mark, dict(data.params), dict(data.tags), list(data.metrics))


@dataclass
class Delivered:
    """What was added to MLflow.

    Attributes:
        trials: Numbers of the trials that it is about.
        runs: Child runs that are new.
        figures: Values of metrics.
    """

    trials: set[int] = field(default_factory=set)
    runs: int = 0
    figures: int = 0


class Tracker:
    """Writes one study to MLflow, from the driver process.

    Only ``open`` raises. Once open, no failure ends a search: the first one is logged as a warning, the
    tracker is ``pending``, and the first call after a minute reconciles everything that was missed. So a dead server
    costs some seconds a minute. Not for use by several threads.

    Attributes:
        experiment_id: MLflow's id of the experiment.
        run_id: MLflow's id of the parent run.
        failure: What MLflow last failed with, "" while nothing is ``pending``.
        heard_at: When the writing last got on, in seconds of ``time.monotonic``.
        delivered: What was added.
    """

    def __init__(
        self,
        client: MlflowClient,
        *,
        experiment_id: str,
        run_id: str,
        study: str,
        study_folder: Path,
        objectives: Sequence[Objective],
        reference: Sequence[float] | None,
        uri: str,
    ) -> None:
        """Use ``Tracker.open``."""
        self.experiment_id = experiment_id
        self.run_id = run_id
        self._client = client
        self._study = study
        self._folder = study_folder
        self._objectives = tuple(objectives)
        self._reference = reference
        self._uri = uri
        self._where = public_uri(uri)
        self._known: dict[int, TrialRecord] = {}
        self._children: dict[str, _Child] = {}  # by label
        self._volumes: dict[Point, float] | None = None
        self._drawn = ""
        self._failed_at: float | None = None
        self._warned = False
        self.failure = ""
        self.heard_at = time.monotonic()
        self.delivered = Delivered()

    @classmethod
    def open(
        cls,
        *,
        uri: str,
        experiment: str,
        study: str,
        study_folder: Path,
        params: Mapping[str, Any],
        objectives: Sequence[Objective],
        reference: Sequence[float] | None = None,
    ) -> Tracker:
        """Reaches MLflow and finds or creates the study's parent run.

        The run is found again by an identity that is kept in the study's folder, so a restart goes on in it, also
        when it was left RUNNING or was ended, and two studies of one name on one server stay apart.

        Args:
            uri: ``default_uri(study_folder)``, another database URI, or a server's address.
            experiment: Name; created if it is new.
            study: The study's name.
            study_folder: Its folder. Artifacts of a database store go there; a server decides for itself.
            params: Settings of the study, shown as parameters. MLflow cannot change a parameter; one that differs
                from an earlier start's (a budget that grew) becomes a tag ``headway.param.NAME``.
            objectives: The study's objectives.
            reference: Reference point of the hypervolume, ``None`` for ``pareto.default_reference``.

        Raises:
            UserError: MLflow cannot be reached (known within about 8 s for a server), or the experiment was deleted
                or cannot be created. The message never holds credentials. Nothing was written then.
        """
        client = reach(uri)
        try:
            experiment_id = open_experiment(client, uri, experiment, study_folder)
            run_id = open_parent(client, experiment_id, study, study_folder, params)
            lead_to(client, experiment_id, run_id, study, objectives)
            tracker = cls(
                client,
                experiment_id=experiment_id,
                run_id=run_id,
                study=study,
                study_folder=study_folder,
                objectives=objectives,
                reference=reference,
                uri=uri,
            )
            tracker._load()
        except FAILURES as error:
            raise UserError(
                f"tracking.experiment: cannot use '{experiment}' at {public_uri(uri)}: {reason(error, uri)}"
            ) from error
        return tracker

    @property
    def pending(self) -> bool:
        """True while MLflow misses something that could not be written."""
        return self._failed_at is not None

    def trial(self, record: TrialRecord) -> None:
        """Writes a trial as it stands now; what is there already is not written again.

        Knobs are parameters; each epoch's figures are series ``epoch/NAME`` over the epoch. Once the trial is
        finished its final figures stand under their own names at step 0; those of accuracy only if it is COMPLETE, as
        a half-trained figure beside trained ones would mislead. Values that are not finite are left out. A trial that
        is only PROPOSED gets no run. Each further setting of inference knobs has a run of its own beside the trial's,
        named ``7.3`` for the third of trial 7, so that charts of the runs show the curve. The pictures in its folder
        become artifacts of its run.
        """
        self._known[record.number] = record
        self._guarded(lambda: self._upsert_all(record))

    def study(self, records: Sequence[TrialRecord]) -> None:
        """Draws the study anew on its parent run: plots, tables, hypervolume, counts, and which trials are the front.

        Takes about a second, with thousands of trials two or three, so call it now and then. Hypervolume is written up
        to the last full compute minute.
        """
        self._known.update({record.number: record for record in records})
        self._guarded(lambda: self._draw(final=False))

    def reconcile(self, records: Sequence[TrialRecord]) -> None:
        """Makes MLflow agree with the store, after a kill or at any time.

        Extra child runs of a trial and those of trials that are not in ``records`` are deleted, missing figures are
        added, the status is set, and a run that contradicts its record is replaced. Runs that Headway did not make
        are left alone.

        Args:
            records: All trials of the study.
        """
        self._known = {record.number: record for record in records}
        self._guarded(lambda: self._reconcile(complete=True), heals=True)

    def close(self, status: RunStatus, pages: Sequence[Path] = ()) -> None:
        """Writes what is still missing and ends the parent run; nothing may be written after it.

        The tracker is ``pending`` after it where that could not be done.

        Args:
            status: MLflow's word for how the study ended.
            pages: Files to keep as artifacts of the parent run.
        """
        self._failed_at = -math.inf if self.pending else None  # it is tried at once

        def end() -> None:
            # A request that timed out and was sent again may have made a second run unseen.
            self._reconcile(complete=False)
            self._draw(final=True)
            for page in pages:
                self._client.log_artifact(self.run_id, str(page))
            self._client.set_terminated(self.run_id, status)

        self._guarded(end, heals=True)

    def retry(self) -> None:
        """Writes what is missing, where its time has come."""
        if self.pending:
            self._guarded(lambda: None)

    def _guarded(self, action: Callable[[], None], *, heals: bool = False) -> None:
        if self._failed_at is not None and time.monotonic() - self._failed_at < RETRY_SECONDS:
            return
        try:
            if self.pending and not heals:
                self._reconcile(complete=False)
            action()
        except Exception as error:  # a drawing's, too: whatever is wrong with a picture of the study
            _log.debug("tracking", exc_info=True)
            self._failed_at = time.monotonic()
            self.failure = reason(error, self._uri)
            level = logging.DEBUG if self._warned else logging.WARNING
            _log.log(level, "MLflow at %s fails; the search goes on: %s", self._where, self.failure)
            self._warned = True
            return
        self._failed_at, self.failure = None, ""

    # Trials.

    def _load(self) -> dict[str, list[_Child]]:
        """Finds the child runs by the trial's label; ``self._children`` gets the first of each.

        Once at the start, and once after a failure, which may have left a run that is not known of. Between them this
        process alone makes runs, so that a new trial needs no search among those of all others.
        """
        wanted = f"tags.`mlflow.parentRunId` = '{self.run_id}'"
        groups: dict[str, list[_Child]] = {}
        for run in find_runs(self._client, self.experiment_id, wanted):
            self.heard_at = time.monotonic()
            label = run.data.tags.get("headway.trial", "")
            if label:
                groups.setdefault(label, []).append(_Child.of(run))
        self._children.update({label: group[0] for label, group in groups.items()})
        return groups

    def _reconcile(self, *, complete: bool) -> None:
        self._children, self._volumes = {}, None
        known = {item.label: item for record in self._known.values() for item in (record, *further(record))}
        for label, group in self._load().items():
            record = known.get(label)
            if record is None and complete:
                del self._children[label]
                spare = group
            else:
                # The run that needs least repair is kept.
                mark = "" if record is None else content_of(record).fingerprint
                group.sort(key=lambda child: (child.written == mark, len(child.names)), reverse=True)
                self._children[label], spare = group[0], group[1:]
            for child in spare:
                self._client.delete_run(child.run_id)
        for number in sorted(self._known):
            self._upsert_all(self._known[number])

    def _upsert_all(self, record: TrialRecord) -> None:
        for item in (record, *further(record)):
            self._upsert(item)

    def _upsert(self, record: TrialRecord) -> None:
        self.heard_at = time.monotonic()
        content = content_of(record)
        child = self._children.get(record.label)
        if child is None:
            if record.state is TrialState.PROPOSED:
                return
            child = self._create(record)
        mark = content.fingerprint
        if child.written != mark:
            if self._contradicts(child, content):
                self._client.delete_run(child.run_id)
                child = self._create(record)
            shown = self._show_scales(record, child, self._show_pictures(record, child))
            marked = mark if record.state.finished else ""
            self._write(child, replace(content, tags={**shown, **content.tags, _MARK: marked}))
            self.delivered.trials.add(record.number)
            child.written = mark
            if record.state.finished:
                child.names, child.logged = sorted({name for name, _ in child.logged or ()}), None
        if child.status != content.status:
            if content.status in ("FINISHED", "FAILED"):
                self._client.set_terminated(child.run_id, content.status, milliseconds(record.finished) or None)
            else:
                self._client.update_run(child.run_id, status=content.status)
            child.status = content.status

    def _create(self, record: TrialRecord) -> _Child:
        tags = {
            "headway.study": self._study,
            "headway.role": "trial",
            "headway.trial": record.label,
            "mlflow.parentRunId": self.run_id,
            "mlflow.source.name": "headway",
        }
        run = self._client.create_run(
            self.experiment_id,
            start_time=milliseconds(record.started) or None,
            tags=tags,
            run_name=f"{record.label} {short(record.knobs, 120)}",
        )
        self.delivered.runs += 1
        child = _Child(run.info.run_id, run.info.status, tags=tags, logged={})
        self._children[record.label] = child
        return child

    def _show_pictures(self, record: TrialRecord, child: _Child) -> dict[str, str]:
        """Logs the pictures in a trial's folder as artifacts, once.

        Returns:
            Tags that tell so and show some of them as the run's description; none for a trial without pictures.
        """
        names = [] if record.point else list(record.attrs.get("pictures") or ())
        folder = self._folder / record.folder / PICTURES
        if not names or not folder.is_dir():
            return {}
        tags = {"headway.pictures": str(len(names))}
        if child.tags.get("headway.pictures") != tags["headway.pictures"]:
            self._client.log_artifacts(child.run_id, str(folder), PICTURES)
        links = [
            f"![{name}](get-artifact?path={quote(f'{PICTURES}/{name}')}&run_uuid={child.run_id})"
            for name in sorted(names, key=lambda name: ".detections." not in name)[:_SHOWN]
        ]
        page = page_url("", self.experiment_id, child.run_id, PICTURES)
        told = f"[All {len(names)} pictures]({page}) of what it finds on validation images"
        return {**tags, "mlflow.note.content": "\n\n".join([told, *links])}

    def _show_scales(self, record: TrialRecord, child: _Child, tags: dict[str, str]) -> dict[str, str]:
        """Logs the scales that a trial has learned as ``scales.png`` and ``scales.json``, anew when they change.

        Returns:
            ``tags`` with one that tells so, and with the picture in the run's description.
        """
        if record.point or not record.attrs.get("scales"):
            return tags
        text = plots.scales_json(record)
        mark = hashlib.sha256(text.encode()).hexdigest()[:16]
        if child.tags.get("headway.scales") != mark:
            with tempfile.TemporaryDirectory(prefix="headway-") as name:
                folder = Path(name)
                title = f"{self._study}, trial {record.label}: learned scales"
                (folder / "scales.png").write_bytes(plots.scales_png(record, title=title))
                (folder / "scales.json").write_text(text, encoding="utf-8")
                self._client.log_artifacts(child.run_id, str(folder))
        link = f"[Learned scales]({page_url('', self.experiment_id, child.run_id, 'scales.png')}) by depth"
        picture = f"![Learned scales](get-artifact?path=scales.png&run_uuid={child.run_id})"
        parts = (link, tags.get("mlflow.note.content"), picture)
        return {**tags, "headway.scales": mark, "mlflow.note.content": "\n\n".join(part for part in parts if part)}

    def _contradicts(self, child: _Child, content: Content) -> bool:
        """Whether the run holds what MLflow cannot change and the record does not say."""
        if any(content.params.get(name) != value for name, value in child.params.items()):
            return True
        if child.logged is None:
            child.logged, doubled = history(self._client, child.run_id, child.names)
            if doubled:
                return True
        for point, value in child.logged.items():
            wanted = content.metrics.get(point)
            if wanted is None and point[0].startswith("epoch/"):
                return True
            if wanted is not None and not math.isclose(wanted[0], value, rel_tol=1e-9):
                return True
        return False

    def _write(self, child: _Child, content: Content) -> None:
        logged = child.logged if child.logged is not None else {}
        metrics = [
            Metric(name, value, stamp, step)
            for (name, step), (value, stamp) in content.metrics.items()
            if (name, step) not in logged
        ]
        params = [Param(name, value) for name, value in content.params.items() if name not in child.params]
        # A tag that no longer holds (the reason of a trial that runs again) is emptied.
        gone = {name: "" for name in ("headway.reason", "mlflow.note.content") if child.tags.get(name)}
        tags = {**gone, **content.tags}
        changed = {name: value for name, value in tags.items() if child.tags.get(name, "") != value}
        self._log(child.run_id, metrics, params, changed)
        child.logged = {**logged, **{(metric.key, metric.step): metric.value for metric in metrics}}
        child.params.update(content.params)
        child.tags.update(changed)

    def _log(self, run_id: str, metrics: list[Metric], params: list[Param], tags: Mapping[str, str]) -> None:
        for start in range(100, len(params), 100):
            self._client.log_batch(run_id, params=params[start : start + 100])
        while len(metrics) > _BATCH:
            self._client.log_batch(run_id, metrics=metrics[:_BATCH])
            metrics = metrics[_BATCH:]
            self.delivered.figures += _BATCH
        self._client.log_batch(
            run_id, metrics=metrics, params=params[:100], tags=[RunTag(name, value) for name, value in tags.items()]
        )
        self.delivered.figures += len(metrics)

    # The study.

    def _draw(self, *, final: bool) -> None:
        records = sorted(self._known.values(), key=lambda record: record.number)
        rows = pareto.front_rows(records, self._objectives)
        reference = pareto.reference_point(records, self._objectives, self._reference)
        curves = [] if reference is None else pareto.hypervolume_curves(records, self._objectives, reference)
        if self._volumes is None:
            names = ["hypervolume", "hypervolume_by_minute"]
            self._volumes, _ = history(self._client, self.run_id, names)
        wanted = volume_metrics(records, curves, final=final)
        metrics = [
            Metric(name, value, stamp, step)
            for (name, step), (value, stamp) in wanted.items()
            if (name, step) not in self._volumes
        ]
        states = [record.state.value for record in records]
        said = counts(states)
        drawn = hashlib.sha256(repr((rows, said, len(curves), final)).encode()).hexdigest()
        tags = {f"headway.trials.{state.value.lower()}": str(states.count(state.value)) for state in TrialState}
        # A folded description shows some 100 px: the links must stand above the picture.
        tags["mlflow.note.content"] = (
            f"**[Pareto plot]({page_url('', self.experiment_id, self.run_id)})** \u00b7 runs, live: "
            f"[all]({view_url(self.experiment_id, self.run_id, front=False)}), "
            f"[the front]({view_url(self.experiment_id, self.run_id, front=True)}) \u00b7 "
            f"[table]({page_url('', self.experiment_id, self.run_id, 'front.csv')}) \u00b7 {said}\n\n"
            f"![Pareto front](get-artifact?path=pareto.png&run_uuid={self.run_id})"
        )
        if metrics or drawn != self._drawn:
            self._log(self.run_id, metrics, [], tags)
            self._volumes.update({(metric.key, metric.step): metric.value for metric in metrics})
        if drawn == self._drawn:
            return
        with tempfile.TemporaryDirectory(prefix="headway-") as name:
            folder = Path(name)
            title = f"{self._study}: the front"
            data = plots.page_data(records, self._objectives, title=title, runs=self.runs(live=not final))
            (folder / "pareto.html").write_text(plots.page_of_data(data), encoding="utf-8")
            # What a page that is open loads its news from. MLflow serves .js as plain text, which no browser runs.
            (folder / "pareto.mjs").write_text(plots.script_of_data(data), encoding="utf-8")
            picture = plots.pareto_picture(records, self._objectives, title=title)
            (folder / "pareto.png").write_bytes(plots.png(picture))
            (folder / "pareto.svg").write_text(plots.svg(picture), encoding="utf-8")
            volumes = plots.hypervolume_png(curves, title=f"{self._study}: hypervolume")
            (folder / "hypervolume.png").write_bytes(volumes)
            pareto.write_front_csv(rows, folder / "front.csv")
            pareto.write_front_json(rows, folder / "front.json")
            self._client.log_artifacts(self.run_id, str(folder))
        for row in rows:
            self._mark(row)
        self._drawn = drawn

    def runs(self, *, live: bool = False) -> plots.Runs:
        """Tells where the trials' runs are, for links from plots."""
        trials = {label: child.run_id for label, child in self._children.items()}
        server = "" if is_database(self._uri) or not self._uri.startswith("http") else self._where
        return plots.Runs(self.experiment_id, self.run_id, trials, server=server, live=live)

    def _mark(self, row: Mapping[str, Any]) -> None:
        child = self._children.get(row["point"])
        if child is None:
            self._upsert_all(self._known[row["trial"]])
            child = self._children[row["point"]]
        on_front = str(row["on_front"]).lower()
        colour = _COLOURS["baseline" if row["baseline"] else on_front]
        tags = {"headway.front": on_front, "mlflow.runColor": colour}
        if any(child.tags.get(name) != value for name, value in tags.items()):
            self._log(child.run_id, [], [], tags)
            child.tags.update(tags)
