"""Every family keeps these promises, on every head that it works on, alone and with every other family.

Families are found by the registry, so a new one joins by itself. Only a head without a tiny detector needs an entry in
``conftest.TINY``.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

import spaces
from spaces import patching
from spaces.base import ROTATED, BaseFacts
from spaces.errors import HeadwayError, UserError
from spaces.family import Family
from spaces.knob import Choice, Knob, knob_from_json
from spaces.modules import dense_head
from spaces.registry import families
from spaces.space import Design, Space, build_space, conflict, design_hash

SAMPLES = 3

# The tiny detectors' facts, so that cases can be listed before anything is built; test_facts proves them.
DETECTORS = {
    "GFLHead": "GFL", "ATSSHead": "ATSS", "RetinaHead": "RetinaNet", "FCOSHead": "FCOS", "TOODHead": "TOOD",
    "PAAHead": "PAA", "VFNetHead": "VFNet", "AutoAssignHead": "AutoAssign", "DDODHead": "DDOD",
    "CondInstBboxHead": "CondInst", "BoxInstBboxHead": "BoxInst",
}  # fmt: skip
FACTS = {
    head: BaseFacts(
        detector,
        head,
        (8, 16, 32, 64, 128),
        tower_convs=2,
        tower_norm=None if head == "RetinaHead" else "GN",
        tower_bias=head in ("RetinaHead", "AutoAssignHead", "CondInstBboxHead", "BoxInstBboxHead"),
        branches=("inter",) if head == "TOODHead" else ("cls", "reg"),
        priors=9 if head == "RetinaHead" else 1,
        finer=1,
    )
    for head, detector in DETECTORS.items()
}
FACTS["RPNHead"] = BaseFacts(
    "FasterRCNN", "RPNHead", (4, 8, 16, 32, 64), 1, True, branches=("rpn",), part="rpn_head", priors=3
)


class Dice:
    """A sampler without a memory."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self.random.choice(list(choices))

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float:
        if step is None:
            return self.random.uniform(low, high)
        return low + step * self.random.randint(0, round((high - low) / step))

    def suggest_int(self, name: str, low: int, high: int) -> int:
        return self.random.randint(low, high)


def space_of(head: str, *names: str) -> Space:
    return build_space({name: {"always": True} for name in names}, FACTS[head])


def defaults(space: Space) -> Design:
    return space.canonicalise({name: knob.default for name, knob in space.knobs.items()})


def legal(space: Space, settings: Iterable[Design]) -> list[Design]:
    """Canonical, distinct, and without the base and what is illegal on it."""
    found: dict[str, Design] = {}
    for values in settings:
        try:
            design = space.canonicalise(values)
        except UserError:
            continue
        if design:
            found[design_hash(design)] = design
    return list(found.values())


def ends_of(knob: Knob) -> list[Any]:
    """The ends of a range; all choices, those included that are only tried where a study asks for them."""
    return list(knob.choices) if isinstance(knob, Choice) else knob.extremes()


def designs(space: Space, corners: int, samples: int = SAMPLES) -> list[Design]:
    """The defaults, both ends of each knob with the others at their defaults, corners of all, and seeded samples."""
    middle = {name: knob.default for name, knob in space.knobs.items()}
    ends = ({**middle, name: value} for name, knob in space.knobs.items() for value in ends_of(knob))
    drawn = []
    for seed in range(samples):
        try:
            drawn.append(space.suggest(Dice(seed)))
        except UserError:  # illegal together on this base
            continue
    alone = len(space.families) == 1
    return legal(space, (middle, *(ends if alone else ()), *space.corners(corners), *drawn))


# Heads on which many corners are built; on the others, which share their code paths, hardly more than the ends.
THOROUGH = ("GFLHead", "ATSSHead", "RetinaHead", "FCOSHead")


def upright(family: Family) -> list[str]:
    """The heads that mmdet alone can build; ``test_rotated.py`` has the others."""
    return [head for head in family.heads if head not in ROTATED]


def cases() -> list[Any]:
    listed = []
    for name, family in families().items():
        for head in upright(family):
            for design in designs(space_of(head, name), *((12, SAMPLES) if head in THOROUGH else (1, 1))):
                listed.append(pytest.param(head, design, id=f"{head}-{name}-{design_hash(design)}"))
    for one, other in itertools.combinations(families().values(), 2):
        if conflict(one, other):
            continue
        for head in sorted({*upright(one)} & {*upright(other)}):
            space = space_of(head, one.name, other.name)
            for design in designs(space, *((4, SAMPLES) if head in THOROUGH else (1, 1))):
                if {*patching.split(design)} == {one.name, other.name}:  # alone, it is listed above
                    listed.append(
                        pytest.param(head, design, id=f"{head}-{one.name}-{other.name}-{design_hash(design)}")
                    )
    return listed


ALONE = [
    pytest.param(name, head, id=f"{name}-{head}") for name, family in families().items() for head in upright(family)
]


@pytest.mark.parametrize("head", sorted({head for family in families().values() for head in upright(family)}))
def test_facts(head: str, tiny: Any) -> None:
    assert head in tiny.heads, f"add a tiny detector with {head} to tests/contracts/conftest.py"
    assert spaces.base.facts(tiny.base_config(head)) == FACTS[head]


@pytest.mark.parametrize("name", families())
def test_folder_is_complete(name: str) -> None:
    folder = Path(spaces.__path__[0]) / name
    assert {"README.md", "knobs.py", "patch.py", "modules.py"} <= {file.name for file in folder.iterdir()}
    text = (folder / "README.md").read_text()
    for head in upright(families()[name]):
        for knob in space_of(head, name).families[0].full:
            assert f"`{knob.name}`" in text


@pytest.mark.parametrize(("name", "head"), ALONE)
def test_knobs_survive_json(name: str, head: str) -> None:
    for knob in space_of(head, name).families[0].full:
        assert knob_from_json(json.loads(json.dumps(knob.to_json()))) == knob
        assert knob.check(knob.default, knob.name) == knob.default


@pytest.mark.parametrize(("name", "head"), ALONE)
def test_off_is_the_base(name: str, head: str, tiny: Any) -> None:
    space = space_of(head, name)
    base = tiny.base_config(head)
    assert patching.apply(base, {}) == base
    for setting in families()[name].off_settings:
        off = {f"{name}.{condition.knob}": condition.value for condition in setting}
        assert space.canonicalise({**prefixed(space), **off}) == {}


def prefixed(space: Space) -> dict[str, Any]:
    return {name: knob.default for name, knob in space.knobs.items()}


@pytest.mark.parametrize(("name", "head"), ALONE)
def test_each_knob_changes_the_config(name: str, head: str, tiny: Any) -> None:
    space = space_of(head, name)
    base = tiny.base_config(head)
    for key, knob in space.knobs.items():
        changed, with_others, refused = [], [], False
        for design in designs(space, corners=64):
            for value in ends_of(knob):
                try:
                    other = space.canonicalise({**design, key: value})
                except UserError:  # illegal on this base
                    refused = True
                    continue
                same_rest = {k: v for k, v in design.items() if k != key} == {
                    k: v for k, v in other.items() if k != key
                }
                if key in design and key in other and design != other:
                    differ = patching.apply(base, design) != patching.apply(base, other)
                    (changed if same_rest else with_others).append(differ)
        # On a small base every step of a knob may wake or silence another one.
        changed = changed or with_others
        if len(ends_of(knob)) > 1:
            assert changed or refused, f"no two designs differ in {key} alone"
            assert all(changed), f"{key} does not reach the config"


@functools.cache
def without_gradient(head: str, boxes: int, tiny: Any) -> frozenset[str]:
    """Weights that the loss of the base itself does not touch: those of masks when there is no object."""
    model = tiny.build(tiny.base_config(head))
    tiny.total_loss(model, boxes).backward()
    return frozenset(name for name, parameter in model.named_parameters() if parameter.grad is None)


@pytest.mark.parametrize(("head", "design"), cases())
def test_design(head: str, design: Design, tiny: Any) -> None:
    base = tiny.base_config(head)

    # The patch is pure, and a design survives JSON.
    before = copy.deepcopy(base)
    patched = patching.apply(base, design)
    assert base == before
    assert patched != base
    text = json.dumps(design)
    assert patching.apply(base, json.loads(text)) == patched
    again = space_of(head, *patching.split(design)).canonicalise(json.loads(text))
    assert json.dumps(again) == text

    # It builds, and what was built is what was asked for.
    model = tiny.build(base, design)
    model.init_weights()
    patching.check_built(model, design)

    # Training: finite losses and a gradient for every weight, with objects and without.
    for boxes in (0, 2):
        model.train()
        model.zero_grad()
        loss = tiny.total_loss(model, boxes)
        assert torch.isfinite(loss)
        loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name not in without_gradient(head, boxes, tiny):
                assert parameter.grad is not None, f"{name} gets no gradient with {boxes} boxes"
                assert torch.isfinite(parameter.grad).all(), name
    dense = dense_head(model)
    unused = [name for name, parameter in dense.named_parameters() if not parameter.grad.any()]
    if unused and hasattr(dense, "level_towers"):
        # A tower of one level's own learns nothing where no object was assigned to that level, but it has an effect.
        outputs = dense(model.extract_feat(tiny.batch()[0]))
        torch.stack([out.square().mean() for group in outputs for out in group]).sum().backward()
        unused = [name for name, parameter in dense.named_parameters() if not parameter.grad.any()]
    # A level may have no object; distances that are clamped at zero may all lie below.
    dead = ("scales", "conv_reg") if getattr(dense_head(model), "norm_on_bbox", False) else ("scales",)
    # The layer attention of so small a TOOD has two hidden units, whose ReLU may be shut on one level.
    dead += ("cls_decomp.layer_attention", "reg_decomp.layer_attention")
    assert not [name for name in unused if not name.startswith(dead)], "a weight of the head has no effect"

    # Inference.
    model.eval()
    with torch.no_grad():
        results = model(*tiny.batch(), mode="predict")
    assert len(results) == 2
    for result in results:
        assert torch.isfinite(result.pred_instances.bboxes).all()


@pytest.mark.parametrize(("name", "head"), ALONE)
def test_check_built_can_fail(name: str, head: str, tiny: Any) -> None:
    space = space_of(head, name)
    design = defaults(space)
    base = tiny.base_config(head)
    with pytest.raises(HeadwayError, match=f"^{name}: the patched config did not take effect"):
        patching.check_built(tiny.build(base), design)
    model = tiny.build(base, design)
    patching.check_built(model, design)
    for key, knob in space.knobs.items():
        for value in ends_of(knob):
            try:
                other = space.canonicalise({**design, key: value})
            except UserError:  # illegal on this base
                continue
            if other and space.architecture(other) != space.architecture(design):
                with pytest.raises(HeadwayError, match="did not take effect"):
                    patching.check_built(model, other)


@pytest.mark.parametrize(("name", "head"), ALONE)
def test_memory_format_changes_nothing(name: str, head: str, tiny: Any) -> None:
    """Trials train and are timed in channels-last, bundles run in either."""
    if head == "VFNetHead":
        pytest.skip("mmcv's own deformable convolutions, part of this base, refuse channels-last tensors")
    space = space_of(head, name)
    # The defaults, the ends of the knobs, and where it is thorough, corners.
    for design in designs(space, corners=4)[: 8 if head in THOROUGH else 3]:
        # In double precision, where rounding moves no sample across a pixel's border (the gradient jumps there).
        plain = tiny.build(tiny.base_config(head), design).double()
        plain.init_weights()
        for key, parameter in plain.named_parameters():
            if "conv_offset" in key:
                torch.nn.init.normal_(parameter, std=0.3)  # at zero, an offset could be misread unnoticed
        turned = copy.deepcopy(plain).to(memory_format=torch.channels_last)
        images = tiny.batch()[0].double()
        found = []
        for model, batch in ((plain, images), (turned, images.to(memory_format=torch.channels_last))):
            outputs = dense_head(model)(model.extract_feat(batch))
            flat = [tensor for group in outputs for tensor in group]
            torch.stack([tensor.square().mean() for tensor in flat]).sum().backward()
            gradients = [parameter.grad for parameter in dense_head(model).parameters() if parameter.grad is not None]
            found.append([*flat, *gradients])
        for one, other in zip(*found, strict=True):
            assert torch.allclose(one, other, rtol=1e-6, atol=1e-8)
