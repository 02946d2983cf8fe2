"""Every family keeps these promises, on every head that it works on, alone and with every other family.

Families are found by the registry, so a new one joins by itself. Only a head without a tiny detector needs an entry in
``conftest.TINY``.
"""

from __future__ import annotations

import copy
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import spaces
from spaces import patching
from spaces.base import BaseFacts
from spaces.errors import HeadwayError
from spaces.knob import knob_from_json
from spaces.registry import families
from spaces.space import Design, Space, build_space, design_hash

SAMPLES = 3

# The tiny detectors' facts, so that cases can be listed before anything is built; test_facts proves them.
FACTS = {
    head: BaseFacts(
        detector, head, (8, 16, 32, 64, 128), 2, head == "RetinaHead", priors=9 if head == "RetinaHead" else 1, finer=1
    )
    for head, detector in {"GFLHead": "GFL", "ATSSHead": "ATSS", "RetinaHead": "RetinaNet", "FCOSHead": "FCOS"}.items()
}


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


def designs(space: Space, corners: int) -> list[Design]:
    drawn = [space.suggest(Dice(seed)) for seed in range(SAMPLES)]
    found = {design_hash(design): design for design in (defaults(space), *space.corners(corners), *drawn) if design}
    return list(found.values())


def cases() -> list[Any]:
    listed = []
    for name, family in families().items():
        for head in family.heads:
            for design in designs(space_of(head, name), corners=16):
                listed.append(pytest.param(head, design, id=f"{head}-{name}-{design_hash(design)}"))
    for one, other in itertools.combinations(families().values(), 2):
        if other.name in one.conflicts or one.name in other.conflicts:
            continue
        for head in sorted({*one.heads} & {*other.heads}):
            for design in designs(space_of(head, one.name, other.name), corners=4):
                listed.append(pytest.param(head, design, id=f"{head}-{one.name}-{other.name}-{design_hash(design)}"))
    return listed


ALONE = [pytest.param(name, head, id=f"{name}-{head}") for name, family in families().items() for head in family.heads]


@pytest.mark.parametrize("head", sorted({head for family in families().values() for head in family.heads}))
def test_facts(head: str, tiny: Any) -> None:
    assert head in tiny.heads, f"add a tiny detector with {head} to tests/contracts/conftest.py"
    assert spaces.base.facts(tiny.base_config(head)) == FACTS[head]


@pytest.mark.parametrize("name", families())
def test_folder_is_complete(name: str) -> None:
    folder = Path(spaces.__path__[0]) / name
    assert {"README.md", "knobs.py", "patch.py", "modules.py"} <= {file.name for file in folder.iterdir()}
    text = (folder / "README.md").read_text()
    for head in families()[name].heads:
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
    for condition in families()[name].off:
        design = space.canonicalise({**prefixed(space), f"{name}.{condition.knob}": condition.value})
        assert design == {}


def prefixed(space: Space) -> dict[str, Any]:
    return {name: knob.default for name, knob in space.knobs.items()}


@pytest.mark.parametrize(("name", "head"), ALONE)
def test_each_knob_changes_the_config(name: str, head: str, tiny: Any) -> None:
    space = space_of(head, name)
    base = tiny.base_config(head)
    for key, knob in space.knobs.items():
        changed = []
        for design in designs(space, corners=64):
            for value in knob.extremes():
                other = space.canonicalise({**design, key: value})
                same_rest = {k: v for k, v in design.items() if k != key} == {
                    k: v for k, v in other.items() if k != key
                }
                if key in design and key in other and same_rest and design != other:
                    changed.append(patching.apply(base, design) != patching.apply(base, other))
        if knob.size() > 1:
            assert changed, f"no two designs differ in {key} alone"
            assert all(changed), f"{key} does not reach the config"


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
            if parameter.requires_grad:
                assert parameter.grad is not None, f"{name} gets no gradient with {boxes} boxes"
                assert torch.isfinite(parameter.grad).all(), name
    unused = [name for name, parameter in model.bbox_head.named_parameters() if not parameter.grad.any()]
    assert not [name for name in unused if "scales" not in name], "a weight of the head has no effect"

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
        for value in knob.extremes():
            other = space.canonicalise({**design, key: value})
            if other and space.architecture(other) != space.architecture(design):
                with pytest.raises(HeadwayError, match="did not take effect"):
                    patching.check_built(model, other)


@pytest.mark.parametrize(("name", "head"), ALONE)
def test_memory_format_changes_nothing(name: str, head: str, tiny: Any) -> None:
    """Trials train and are timed in channels-last, bundles run in either."""
    space = space_of(head, name)
    for design in designs(space, corners=4):
        # In double precision, where rounding moves no sample across a pixel's border (the gradient jumps there).
        plain = tiny.build(tiny.base_config(head), design).double()
        plain.init_weights()
        for key, parameter in plain.named_parameters():
            if "conv_offset" in key:
                torch.nn.init.normal_(parameter, std=0.3)  # at zero, an offset could be misread unnoticed
        turned = copy.deepcopy(plain).to(memory_format=torch.channels_last)
        images, samples = tiny.batch()
        images = images.double()
        found = []
        for model, batch in ((plain, images), (turned, images.to(memory_format=torch.channels_last))):
            outputs = model(batch, samples, mode="tensor")
            flat = [tensor for group in outputs for tensor in group]
            torch.stack([tensor.square().mean() for tensor in flat]).sum().backward()
            gradients = [parameter.grad for parameter in model.bbox_head.parameters() if parameter.grad is not None]
            found.append([*flat, *gradients])
        for one, other in zip(*found, strict=True):
            assert torch.allclose(one, other, rtol=1e-6, atol=1e-8)
