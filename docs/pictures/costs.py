"""Counts the designs of the cost pictures and writes ``costs.json``: ``python docs/pictures/costs.py``.

The figures are those of ``headway profile``; detectors are built at full size, which takes a minute or two.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FILE = Path(__file__).with_name("costs.json")
SIZE = (800, 1344)

GFL = "mmdet::gfl/gfl_r50_fpn_1x_coco.py"
RETINANET = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"
FASTER = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
K4, ALL, FIRST_TWO = [0, 1], [0, 1, 2, 3, 4], ["cls.0", "cls.1", "reg.0", "reg.1"]

# By picture: the base, and designs by the name that stands beside the bar.
DESIGNS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "slimhead": (
        GFL,
        {
            "GFL-R50": {},
            "P3, r = 0.8": {"slimhead.levels": [0], "slimhead.ratio": 0.8},
            "P3, r = 0.5": {"slimhead.levels": [0], "slimhead.ratio": 0.5},
            "P3 and P4, r = 0.5": {"slimhead.levels": K4, "slimhead.ratio": 0.5},
            "all levels, r = 0.5": {"slimhead.levels": ALL, "slimhead.ratio": 0.5},
        },
    ),
    "dcn": (
        GFL,
        {
            "GFL-R50": {},
            "first two layers": {"dcn.placement": FIRST_TWO},
            "the same, P3 slimmed": {
                "dcn.placement": FIRST_TWO,
                "slimhead.levels": [0],
                "slimhead.ratio": 0.5,
            },
        },
    ),
    "shallow": (
        GFL,
        {
            "GFL-R50": {},
            "P3, P4: half the channels": {"shallow.levels": K4, "shallow.layers": "all", "shallow.channels": 0.5},
            "P3, P4: gradually fewer layers": {
                "shallow.levels": K4,
                "shallow.layers": "gradual",
                "shallow.channels": 1.0,
            },
            "slimhead, P3 and P4, r = 0.5": {"slimhead.levels": K4, "slimhead.ratio": 0.5},
        },
    ),
    "querydet": (RETINANET, {"RetinaNet-R50": {}, "with P2, all of it": {"querydet.p2": True}}),
    "keyparts": (
        FASTER,
        {
            "two FC layers": {},
            "K16, L5": {"keyparts.parts": 16, "keyparts.grid": 5},
            "K4, L3": {"keyparts.parts": 4, "keyparts.grid": 3},
            "K1, L1": {"keyparts.parts": 1, "keyparts.grid": 1},
        },
    ),
}


def count(base: str, design: dict[str, Any]) -> dict[str, Any]:
    """Counts one design, with the family's other knobs at their defaults."""
    from spaces.base import facts
    from spaces.space import full_space
    from trainers.config import load_base
    from trainers.profile import count_patched

    known = full_space(facts(load_base(base).model.to_dict()))
    return count_patched(base, known.canonicalise(design), SIZE).to_json()


def main() -> None:
    """Writes the file."""
    found = {}
    for picture, (base, designs) in DESIGNS.items():
        found[picture] = {}
        for name, design in designs.items():
            print(f"{picture}: {name}", file=sys.stderr, flush=True)
            found[picture][name] = {"base": base, "knobs": design, **count(base, design)}
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
