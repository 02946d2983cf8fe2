"""How much each knob, and each pair of knobs, explains of an objective: functional ANOVA over a forest of trees.

The method is that of Hutter, Hoos and Leyton-Brown, "An efficient approach for assessing hyperparameter importance"
(ICML 2014): a forest learns the objective from the knobs, and the variance of what it predicts over the whole space is
split into what each knob explains alone (equation 5) and what pairs explain beyond that. Leaves of a tree are boxes, so
that averages over all other knobs are exact sums, not samples.

A design has knobs that others lack, which needs decisions:

- Whether a family is there at all is a knob of its own, named like the family, where designs differ in it.
- A design that lacks a knob gets, in each tree anew, the value of a random design that has it. So a knob's share is
  that of its values; that of being there goes to the family's switch, or to the knob that decides it.
- A set (levels, positions) is one knob, though trees look at its elements.
- All values of a knob that were tried count alike, however often the sampler came back to them.
- The baseline is left out: nobody proposed it, and its families are all off.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.record import Objective, TrialRecord, TrialState, spread

LEAST_TRIALS = 60
"""Designs below which shares are a guess; see docs/decisions.md for the experiment."""
LEAST_EXPLAINED = 0.3
"""Share of the variance of unseen designs that the forest must predict before its shares mean anything."""

_TREES = 64
_LEAST_ROWS = 20  # with fewer, the order of the knobs is a guess as well
_MOST_ROWS = 1000
_MOST_VALUES = 24  # of an ordered knob, evenly chosen
_MOST_SETS = 64
_MOST_KNOBS_IN_PAIRS = 20
_PROBES = 8192

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Importance:
    """What explains one objective.

    Attributes:
        metric: The objective.
        designs: Designs that it rests on; every setting of a sweep is one.
        sampled: Designs that were there, of which ``designs`` were drawn; ``None`` where all were taken.
        explained: Share of the variance of designs that a tree did not see which the forest predicts (out-of-bag R²),
            at most 1; below 0 it is worse than the mean. NaN where nothing was learned.
        shares: By knob the share of the predicted variance that it explains alone, 0 to 1, descending.
        pairs: By pair of knobs the share that the two explain together beyond what each does alone, descending.
            A family's switch and its own knobs are no pair.
        fixed: Knobs that all designs with them have at one value.
    """

    metric: str
    designs: int
    sampled: int | None = None
    explained: float = math.nan
    shares: Mapping[str, float] = field(default_factory=dict)
    pairs: Mapping[tuple[str, str], float] = field(default_factory=dict)
    fixed: Sequence[str] = ()

    @property
    def doubt(self) -> str | None:
        """Why the shares are not to be relied on, ``None`` where nothing speaks against them."""
        if not self.shares:
            return f"{self.designs} designs that are too few or too alike"
        if self.designs < LEAST_TRIALS:
            return f"{self.designs} designs, fewer than the {LEAST_TRIALS} that shares need to settle"
        if not self.explained >= LEAST_EXPLAINED:
            told = max(0.0, self.explained)
            return f"knobs predict {100 * told:.0f} % of the variance of designs that were held back"
        return None

    def to_json(self) -> dict[str, Any]:
        """Gives plain JSON types."""
        return {
            "metric": self.metric,
            "designs": self.designs,
            "sampled": self.sampled,
            "explained": self.explained if math.isfinite(self.explained) else None,
            "shares": dict(self.shares),
            "pairs": [{"knobs": list(pair), "share": share} for pair, share in self.pairs.items()],
            "fixed": list(self.fixed),
            "doubt": self.doubt,
        }


def importances(trials: Iterable[TrialRecord], objectives: Sequence[Objective], *, seed: int = 0) -> list[Importance]:
    """Works out what explains each objective.

    Accuracy is taken from COMPLETE trials only, as that of a stopped one is half-trained; cost and latency also from
    trials that were stopped, refused or failed once they were known.

    Args:
        trials: All records.
        objectives: Of the study.
        seed: Of the forest.

    Returns:
        One an objective, in their order.
    """
    records = spread(trials)
    return [
        _importance(proposed(records, objective), objective.metric, np.random.default_rng(seed))
        for objective in objectives
    ]


def proposed(records: Iterable[TrialRecord], objective: Objective) -> list[TrialRecord]:
    """Keeps the proposed designs of which the objective is known as it would be in the end; see ``importances``."""
    trained = objective.maximize or objective.metric.startswith("bbox_")
    return [
        record
        for record in records
        if not record.baseline
        and (record.state is TrialState.COMPLETE or not trained)
        and math.isfinite(record.metrics.get(objective.metric, math.nan))
    ]


def _importance(records: Sequence[TrialRecord], metric: str, rng: np.random.Generator) -> Importance:
    there = len(records)
    if there > _MOST_ROWS:
        records = [records[index] for index in np.sort(rng.choice(there, _MOST_ROWS, replace=False))]
    sampled = there if there > len(records) else None
    table = Table.of([record.knobs for record in records])
    values = np.array([record.metrics[metric] for record in records])
    bare = Importance(metric, len(records), sampled, fixed=table.fixed)
    if len(records) < _LEAST_ROWS or not table.columns or np.ptp(values) == 0:
        return bare
    groups = np.unique([record.number for record in records], return_inverse=True)[1]
    forest = _Forest(table, (values - values.mean()) / values.std(), groups, rng)
    if forest.variance <= 1e-12:
        return bare
    shares = {name: forest.alone[name] / forest.variance for name in table.columns}
    pairs = {pair: together / forest.variance for pair, together in forest.together().items()}
    return Importance(
        metric,
        len(records),
        sampled,
        forest.explained,
        dict(sorted(shares.items(), key=lambda item: -item[1])),
        dict(sorted(pairs.items(), key=lambda item: -item[1])),
        table.fixed,
    )


@dataclass(frozen=True)
class Column:
    """One knob as numbers.

    Attributes:
        grid: Its values (values, numbers a value).
        rows: Index into ``grid`` of each design's value, -1 where it lacks the knob.
    """

    grid: Floats
    rows: npt.NDArray[np.intp]


@dataclass(frozen=True)
class Table:
    """Designs as numbers.

    Attributes:
        columns: Knobs that vary, and switches of families.
        fixed: Knobs that do not vary.
    """

    columns: Mapping[str, Column]
    fixed: Sequence[str]

    @classmethod
    def of(cls, designs: Sequence[Mapping[str, Any]]) -> Table:
        """Reads canonical designs.

        A knob of numbers is ordered, one of lists is a set of their elements, all else has no order.
        """
        names = sorted({name for design in designs for name in design})
        columns: dict[str, Column] = {}
        fixed = []
        for family in sorted({name.partition(".")[0] for name in names}):
            there = [any(name.partition(".")[0] == family for name in design) for design in designs]
            if not all(there) and family not in names:
                columns[family] = Column(np.array([[0], [1]], np.float32), np.array(there, np.intp))
        for name in names:
            column = _column([design.get(name) for design in designs])
            if column is None:
                fixed.append(name)
            else:
                columns[name] = column
        return cls(columns, fixed)


def _column(values: Sequence[Any]) -> Column | None:
    """Codes a knob; ``None`` where it has one value only."""
    known = {_key(value): value for value in values if value is not None}
    if len(known) < 2:
        return None
    kinds = list(known.values())
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in kinds):
        known = dict(sorted(known.items(), key=lambda item: item[1]))
        grid = np.array([[float(value)] for value in known.values()], np.float32)
    elif all(isinstance(value, (list, tuple)) for value in kinds):
        elements = sorted({str(element) for value in kinds for element in value})
        sets = [{str(element) for element in value} for value in kinds]
        grid = np.array([[element in one for element in elements] for one in sets], np.float32)
    else:
        grid = np.eye(len(known), dtype=np.float32)
    places = {key: index for index, key in enumerate(known)}
    return Column(grid, np.array([-1 if value is None else places[_key(value)] for value in values], np.intp))


def _key(value: Any) -> str:
    return repr(list(value)) if isinstance(value, (list, tuple)) else repr(value)


class _Forest:
    """Trees, with the average of their predictions over all knobs but one or two.

    Attributes:
        explained: Out-of-bag R².
        variance: Of the forest's prediction over the product of all grids.
        alone: By knob the variance of the prediction averaged over all others.
    """

    def __init__(
        self, table: Table, values: npt.NDArray[np.float64], groups: npt.NDArray[np.intp], rng: np.random.Generator
    ) -> None:
        from sklearn.tree import DecisionTreeRegressor  # takes a second

        self._table, self._rng = table, rng
        self._grids = {name: _thin(column.grid) for name, column in table.columns.items()}
        self._trees: list[_Boxes] = []
        held, seen = np.zeros(len(values)), np.zeros(len(values))
        probes = {name: rng.integers(len(grid), size=_PROBES) for name, grid in self._grids.items()}
        probe = np.hstack([self._grids[name][rows] for name, rows in probes.items()])
        guess = np.zeros(_PROBES)
        for _ in range(_TREES):
            # Settings of one training belong together: half of a sweep would give away the other half.
            weight = np.bincount(rng.integers(groups.max() + 1, size=groups.max() + 1), minlength=groups.max() + 1)
            weights = weight[groups]
            rows = self._filled()
            tree = DecisionTreeRegressor(random_state=int(rng.integers(2**31)))
            tree.fit(rows, values, sample_weight=weights)
            out = weights == 0
            held[out] += tree.predict(rows[out]) if out.any() else 0.0
            seen[out] += 1
            guess += tree.predict(probe) / _TREES
            self._trees.append(_Boxes.of(tree.tree_, self._grids))
        known = seen > 0
        truth = values[known]
        spread_ = float(((truth - truth.mean()) ** 2).sum()) if known.any() else 0.0
        missed = float(((held[known] / seen[known] - truth) ** 2).sum()) if known.any() else 0.0
        self.explained = 1 - missed / spread_ if spread_ > 0 else math.nan
        self.variance = float(guess.var())
        self._curves = {
            name: np.mean([boxes.average([name]) @ boxes.inside[name] for boxes in self._trees], axis=0)
            for name in self._grids
        }
        self.alone = {name: float(curve.var()) for name, curve in self._curves.items()}

    def _filled(self) -> Floats:
        """Designs as numbers, each missing knob with the value of a random design that has it."""
        parts = []
        for column in self._table.columns.values():
            rows = column.rows.copy()
            lacking = rows < 0
            rows[lacking] = self._rng.choice(rows[~lacking], size=int(lacking.sum()))
            parts.append(column.grid[rows])
        return np.hstack(parts)

    def together(self) -> dict[tuple[str, str], float]:
        """By pair of knobs, in alphabetical order, the variance that only the two together have.

        The switch of a family and its own knobs are no pair: that these matter only where it is on is no news.
        """
        names = sorted(self.alone, key=lambda name: -self.alone[name])[:_MOST_KNOBS_IN_PAIRS]
        found = {}
        for index, one in enumerate(names):
            for other in names[index + 1 :]:
                if one in _family(other) or other in _family(one):
                    continue
                surface = np.mean(
                    [
                        (boxes.inside[one] * boxes.average([one, other])[:, None]).T @ boxes.inside[other]
                        for boxes in self._trees
                    ],
                    axis=0,
                )  # (values of one, values of other)
                rest = surface - surface.mean(1, keepdims=True) - surface.mean(0, keepdims=True) + surface.mean()
                found[min(one, other), max(one, other)] = float((rest**2).mean())
        return found


@dataclass(frozen=True)
class _Boxes:
    """The leaves of a tree as boxes.

    Attributes:
        values: Prediction in each (L).
        inside: By knob which values of its grid lie within each (L, values).
        sizes: By knob the share of its grid that lies within each (L).
    """

    values: npt.NDArray[np.float64]
    inside: Mapping[str, npt.NDArray[np.float64]]
    sizes: Mapping[str, npt.NDArray[np.float64]]

    @classmethod
    def of(cls, tree: Any, grids: Mapping[str, Floats]) -> _Boxes:
        """Reads a tree of scikit-learn, whose left child takes what is at most the threshold."""
        width = sum(grid.shape[1] for grid in grids.values())
        low = np.full((tree.node_count, width), -np.inf)
        high = np.full((tree.node_count, width), np.inf)
        for node in range(tree.node_count):  # a parent stands before its children
            left, right, column = tree.children_left[node], tree.children_right[node], tree.feature[node]
            if left < 0:
                continue
            for child in (left, right):
                low[child], high[child] = low[node], high[node]
            high[left, column] = min(high[left, column], tree.threshold[node])
            low[right, column] = max(low[right, column], tree.threshold[node])
        leaves = tree.children_left < 0
        low, high = low[leaves], high[leaves]
        inside, start = {}, 0
        for name, grid in grids.items():
            columns = slice(start, start + grid.shape[1])
            start += grid.shape[1]
            above, below = low[:, None, columns] < grid, grid <= high[:, None, columns]
            inside[name] = (above & below).all(axis=2).astype(np.float64)
        sizes = {name: part.mean(axis=1) for name, part in inside.items()}
        return cls(tree.value[leaves, 0, 0], inside, sizes)

    def average(self, free: Sequence[str]) -> npt.NDArray[np.float64]:
        """Prediction of each leaf times the share of the space that it takes of all knobs but the free ones (L)."""
        result = self.values.copy()
        for name, size in self.sizes.items():
            if name not in free:
                result = result * size
        return result


def _family(name: str) -> tuple[str, ...]:
    """The switch that a knob stands under."""
    family, dot, _ = name.partition(".")
    return (family,) if dot else ()


def _thin(grid: Floats) -> Floats:
    most = _MOST_VALUES if grid.shape[1] == 1 else _MOST_SETS
    if len(grid) <= most:
        return grid
    chosen: Floats = grid[np.round(np.linspace(0, len(grid) - 1, most)).astype(int)]
    return chosen
