"""What each family costs, from ``costs.json`` and from recorded studies."""

from __future__ import annotations

import json
from typing import Any

from matplotlib.figure import Figure

from pictures.costs import FILE, ROOT
from pictures.look import BLUE, GREEN, GREY, ORANGE, canvas, level_bars

ON_LEVELS = ("slimhead", "dcn", "shallow", "querydet")


def by_level(picture: str) -> Figure:
    """Multiply-adds of the dense head by pyramid level."""
    designs = json.loads(FILE.read_text(encoding="utf-8"))[picture]
    figure, (axes,) = canvas(9, 0.8 + 0.5 * len(designs))
    level_bars(axes, [(name, cost["macs"]["levels"]) for name, cost in designs.items()], "10⁹ multiply-adds, 800x1344")
    return figure


def keyparts() -> Figure:
    """Parameters and multiply-adds of the box head."""
    designs: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))["keyparts"]
    figure, panels = canvas(9, 2.6, 2)
    for axes, (kind, unit, scale) in zip(
        panels, (("params", "10⁶ parameters", 1e-6), ("macs", "10⁹ multiply-adds of 1,000 RoIs", 1e-9))
    ):
        values = [cost[kind]["parts"]["roi_head"] * scale for cost in designs.values()]
        axes.barh(list(designs), values, color=[GREY, *[BLUE] * (len(values) - 1)])
        for index, value in enumerate(values):
            axes.text(value, index, f" {value:.1f}", va="center", fontsize=9)
        axes.set_xlim(0, max(values) * 1.15)
        axes.set_xlabel(unit)
        axes.invert_yaxis()
    panels[1].set_yticklabels([])
    return figure


def pod() -> Figure:
    """Measured latency of the three networks, of the study of blood cells."""
    rows = json.loads((ROOT / "benchmarks/studies/bccd_pod_front.json").read_text(encoding="utf-8"))
    settled = {row["knobs"]["pod.round_channels"]: row["metrics"] for row in rows if row["knobs"]}
    bars = [
        ("the base", 1.0, 1.0, 1.0, GREY),
        ("learning its scales", *_ratio(settled[1], "learning_latency_ratio"), ORANGE),
        ("decomposed", *_ratio(settled[1], "latency_ratio"), BLUE),
        ("decomposed at multiples\nof 16 channels", *_ratio(settled[16], "latency_ratio"), GREEN),
    ]
    figure, (axes,) = canvas(9, 2.4)
    for index, (_, ratio, low, high, colour) in enumerate(bars):
        axes.barh(index, ratio, color=colour, xerr=[[ratio - low], [high - ratio]], error_kw={"capsize": 3})
        axes.text(high, index, f"  {ratio:.2f}", va="center", fontsize=9)
    axes.set_yticks(range(len(bars)), [bar[0] for bar in bars])
    axes.axvline(1, color=GREY, linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.75)
    axes.set_xlabel("latency x baseline, with quartiles (ATSS, blood cells at 320x240, one CPU core)")
    return figure


def _ratio(metrics: dict[str, float], name: str) -> tuple[float, float, float]:
    return metrics[name], metrics[f"{name}_q1"], metrics[f"{name}_q3"]


PICTURES = {
    **{f"{name}_cost": (lambda name=name: by_level(name)) for name in ON_LEVELS},
    "keyparts_cost": keyparts,
    "pod_cost": pod,
}
