"""Every family keeps these promises, on every tiny detector that it works on, alone and with every other family.

Families are found by the registry, so a new one joins by itself. Only a head without a tiny detector needs an entry in
``conftest.ONE_STAGE``.
"""

from __future__ import annotations

import copy
import functools
import importlib
import itertools
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from torch.utils._pytree import tree_leaves

import spaces
import spaces.autocast  # registers AutocastDetector
from spaces import patching
from spaces.base import ROTATED, BackboneFacts, BaseFacts, RoiFacts
from spaces.errors import HeadwayError, UserError
from spaces.family import Family
from spaces.knob import Choice, Condition, Knob, Number, Subset, Table, knob_from_json
from spaces.modules import dense_head
from spaces.registry import families
from spaces.space import Design, Space, build_space, conflict, design_hash

SAMPLES = 3

# The tiny detectors' facts, so that cases can be listed before anything is built; test_facts proves them.
RESNET = BackboneFacts("ResNet", blocks=(2, 2, 2, 2), basic=True)
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
        backbone=RESNET,
    )
    for head, detector in DETECTORS.items()
}
RPN = BaseFacts(
    "FasterRCNN",
    "RPNHead",
    (4, 8, 16, 32, 64),
    tower_convs=1,
    tower_bias=True,
    branches=("rpn",),
    part="rpn_head",
    priors=3,
    roi=RoiFacts("StandardRoIHead", heads=("Shared2FCBBoxHead",), channels=16),
    backbone=RESNET,
)
FACTS |= {
    "FasterRCNN": RPN,
    "FasterRCNN-C4": replace(
        RPN,
        strides=(16,),
        priors=6,
        roi=RoiFacts("StandardRoIHead", heads=("BBoxHead",), channels=256, shared="ResLayer"),
        backbone=replace(RESNET, shared_stage=5),
    ),
    "CascadeRCNN": replace(
        RPN, detector="CascadeRCNN", roi=RoiFacts("CascadeRoIHead", heads=("Shared2FCBBoxHead",) * 3, channels=16)
    ),
    "MaskRCNN": replace(RPN, detector="MaskRCNN"),
    "RFCN": replace(RPN, strides=(8,), priors=6, roi=RoiFacts("StandardRoIHead", heads=("RFCNBBoxHead",), channels=64)),
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


def space_of(key: str, *names: str) -> Space:
    return build_space({name: {"always": True} for name in names}, FACTS[key])


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


def ends_of(knob: Knob) -> Sequence[Any]:
    """The ends of a range; all choices, those included that are only tried where a study asks for them."""
    if isinstance(knob, Table):
        # One and a half channels' worth of every name, and the first two alone.
        every = tuple((name, *[1.5] * knob.width) for name in sorted(knob.names))
        return (every, every[:2])
    if isinstance(knob, Number):
        return (knob.low, knob.high)
    if isinstance(knob, Subset):
        return tuple(dict.fromkeys((*knob.extremes(), knob.elements)))
    if isinstance(knob, Choice):
        numbers = all(type(choice) is int for choice in knob.choices)
        return tuple(sorted({min(knob.choices), max(knob.choices)})) if numbers else knob.choices
    return knob.extremes()


def awake(space: Space, name: str, settings: Design) -> Design:
    """Changes ``settings`` so that the knob ``name`` has an effect, where they silence it."""
    family = name.partition(".")[0]
    for condition in space.knobs[name].active:
        other = f"{family}.{condition.knob}"
        if not holds(condition, settings[other]):
            settings = {**settings, other: next(v for v in ends_of(space.knobs[other]) if holds(condition, v))}
    return settings


def holds(condition: Condition, value: Any) -> bool:
    return condition.holds({condition.knob: value})


def designs(space: Space, corners: int, samples: int = SAMPLES) -> list[Design]:
    """The defaults, both ends of each knob with the others at their defaults, corners of all, and seeded samples."""
    middle = prefixed(space)
    ends = ({**awake(space, name, middle), name: end} for name, knob in space.knobs.items() for end in ends_of(knob))
    drawn = []
    for seed in range(samples):
        try:
            drawn.append(space.suggest(Dice(seed)))
        except UserError:  # illegal together on this base
            continue
    alone = len(space.families) == 1
    return legal(space, (middle, *(ends if alone else ()), *space.corners(corners), *drawn))


def few(space: Space) -> list[Design]:
    """The defaults, and all places in the network that a knob can name at once; of several families, what goes."""
    middle = prefixed(space)
    places = {name: knob.elements for name, knob in space.knobs.items() if isinstance(knob, Subset)}
    everywhere = {**middle, **places}
    if len(space.families) > 1:
        return legal(space, (everywhere, middle, *({**middle, name: place[:1]} for name, place in places.items())))[:1]
    tables = [name for name, knob in space.knobs.items() if isinstance(knob, Table)]
    named = ({**awake(space, name, middle), name: ends_of(space.knobs[name])[0]} for name in tables)
    return legal(space, (middle, everywhere, *named))


# Heads on which many corners are built; on the others, which share their code paths, hardly more than the ends.
THOROUGH = ("GFLHead", "ATSSHead", "RetinaHead", "FCOSHead")
# The detector with an RPN on which families are thoroughly tried, and those whose RPN is the same to the letter.
FOR_BOXES = "FasterRCNN"
SAME_RPN = ("CascadeRCNN", "MaskRCNN")


def works(family: Family, key: str) -> bool:
    """Whether a family has something to choose on a tiny detector."""
    return not family.refusal(FACTS[key]) and bool(family.knobs(FACTS[key]))


def tried(space: Space, key: str) -> list[Design]:
    """The designs to build on a tiny detector, from many to none."""
    dense = [part.family.name for part in space.families if part.family.heads]
    alone, dense_only = len(space.families) == 1, len(dense) == len(space.families)
    if key == FOR_BOXES or (dense_only and key in DETECTORS):
        return designs(space, *(((12 if alone else 4), SAMPLES) if key in THOROUGH else (1, 1)))
    if alone:
        return few(space)[:1] if dense else few(space)
    # In a pair, one changes the dense head and the other does not, or neither does.
    return few(space) if key in THOROUGH or not dense else []


def cases() -> list[Any]:
    listed = []
    alone = [(family,) for family in families().values()]
    pairs = [pair for pair in itertools.combinations(families().values(), 2) if not conflict(*pair)]
    for together in (*alone, *pairs):
        names = [family.name for family in together]
        for key in FACTS:
            if not all(works(family, key) for family in together):
                continue
            for design in tried(space_of(key, *names), key):
                if {*patching.split(design)} == {*names}:  # a family alone is listed above
                    listed.append(pytest.param(key, design, id=f"{key}-{'-'.join(names)}-{design_hash(design)}"))
    return listed


ALONE = [
    pytest.param(name, key, id=f"{name}-{key}")
    for name, family in families().items()
    for key in FACTS
    if works(family, key) and not (family.heads and key in SAME_RPN)
]


@pytest.mark.parametrize("key", FACTS)
def test_facts(key: str, tiny: Any) -> None:
    assert spaces.base.facts(tiny.base_config(key)) == FACTS[key]


def test_every_head_has_a_tiny_detector(tiny: Any) -> None:
    assert {*tiny.one_stage, *tiny.two_stage} == {*FACTS}
    known = {known.head for known in FACTS.values()} | {*ROTATED}  # test_rotated.py has these
    boxes = {head for known in FACTS.values() if known.roi for head in known.roi.heads}
    for family in families().values():
        assert {*family.heads} <= known, "add a tiny detector to tests/contracts/conftest.py"
        assert not family.box_heads or boxes <= {*family.box_heads}
        assert not family.backbones or RESNET.kind in family.backbones


@pytest.mark.parametrize("name", families())
def test_folder_is_complete(name: str) -> None:
    folder = Path(str(importlib.import_module(families()[name].package).__file__)).parent
    assert {"README.md", "knobs.py", "patch.py", "modules.py"} <= {file.name for file in folder.iterdir()}
    text = (folder / "README.md").read_text()
    for key in FACTS:
        for knob in families()[name].knobs(FACTS[key]) if works(families()[name], key) else ():
            assert f"`{knob.name}`" in text


@pytest.mark.parametrize(("name", "key"), ALONE)
def test_knobs_survive_json(name: str, key: str) -> None:
    for knob in space_of(key, name).families[0].full:
        assert knob_from_json(json.loads(json.dumps(knob.to_json()))) == knob
        assert knob.check(knob.default, knob.name) == knob.default


@pytest.mark.parametrize(("name", "key"), ALONE)
def test_off_is_the_base(name: str, key: str, tiny: Any) -> None:
    space = space_of(key, name)
    base = tiny.base_config(key)
    assert patching.apply(base, {}) == base
    for setting in families()[name].off_settings:
        off = {f"{name}.{condition.knob}": condition.value for condition in setting}
        assert space.canonicalise({**prefixed(space), **off}) == {}


def prefixed(space: Space) -> dict[str, Any]:
    return {name: knob.default for name, knob in space.knobs.items()}


@pytest.mark.parametrize(("name", "key"), ALONE)
def test_each_knob_changes_the_config(name: str, key: str, tiny: Any) -> None:
    space = space_of(key, name)
    base = tiny.base_config(key)
    patched = {design_hash(design): patching.apply(base, design) for design in designs(space, corners=64)}
    for knob_name, knob in space.knobs.items():
        changed, with_others, refused = [], [], False
        for design in designs(space, corners=64):
            for value in ends_of(knob):
                try:
                    other = space.canonicalise({**design, knob_name: value})
                except UserError:  # illegal on this base
                    refused = True
                    continue
                same_rest = {k: v for k, v in design.items() if k != knob_name} == {
                    k: v for k, v in other.items() if k != knob_name
                }
                if knob_name in design and knob_name in other and design != other:
                    differ = patched[design_hash(design)] != patching.apply(base, other)
                    (changed if same_rest else with_others).append(differ)
        # On a small base every step of a knob may wake or silence another one.
        changed = changed or with_others
        if len(ends_of(knob)) > 1:
            assert changed or refused, f"no two designs differ in {knob_name} alone"
            assert all(changed), f"{knob_name} does not reach the config"


@functools.cache
def without_gradient(key: str, boxes: int, tiny: Any) -> frozenset[str]:
    """Weights that the loss of the base itself does not touch: those of masks when there is no object."""
    model = tiny.build(tiny.base_config(key))
    tiny.total_loss(model, boxes).backward()
    return frozenset(name for name, parameter in model.named_parameters() if parameter.grad is None)


@pytest.mark.parametrize(("key", "design"), cases())
def test_design(key: str, design: Design, tiny: Any) -> None:
    base = tiny.base_config(key)

    # The patch is pure, and a design survives JSON.
    before = copy.deepcopy(base)
    patched = patching.apply(base, design)
    assert base == before
    assert patched != base
    text = json.dumps(design)
    assert patching.apply(base, json.loads(text)) == patched
    again = space_of(key, *patching.split(design)).canonicalise(json.loads(text))
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
            if parameter.requires_grad and name not in without_gradient(key, boxes, tiny):
                assert parameter.grad is not None, f"{name} gets no gradient with {boxes} boxes"
                assert torch.isfinite(parameter.grad).all(), name
    assert not without_effect(model, tiny), "a weight has no effect"

    # Inference.
    model.eval()
    with torch.no_grad():
        results = model(*tiny.batch(), mode="predict")
    assert len(results) == 2
    for result in results:
        assert torch.isfinite(result.pred_instances.bboxes).all()


def without_effect(model: Any, tiny: Any) -> list[str]:
    """Weights of the heads, and of what a family adds elsewhere, whose gradient is zero after a step with objects."""
    dense = dense_head(model)
    unused = [name for name, parameter in dense.named_parameters() if not parameter.grad.any()]
    if unused and hasattr(dense, "level_towers"):
        # A tower of one level's own learns nothing where no object was assigned to that level, but it has an effect,
        # seen on maps of more than one site, since all of four ReLUs may be shut at one.
        images = torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(2))
        outputs = dense(model.extract_feat(images))
        torch.stack([out.square().mean() for group in outputs for out in group]).sum().backward()
        unused = [name for name, parameter in dense.named_parameters() if not parameter.grad.any()]
    # A level may have no object; distances that are clamped at zero may all lie below.
    dead = ("scales", "conv_reg") if getattr(dense, "norm_on_bbox", False) else ("scales",)
    # The layer attention of so small a TOOD has two hidden units, whose ReLU may be shut on one level.
    dead += ("cls_decomp.layer_attention", "reg_decomp.layer_attention")
    unused = [name for name in unused if not name.startswith(dead)]
    for name, parameter in model.named_parameters():
        added = ".bbox_head." in name or ".scale." in name
        if added and parameter.requires_grad and not parameter.grad.any():
            unused.append(name)
    return unused


@pytest.mark.parametrize(("name", "key"), ALONE)
def test_check_built_can_fail(name: str, key: str, tiny: Any) -> None:
    space = space_of(key, name)
    design = defaults(space)
    base = tiny.base_config(key)
    with pytest.raises(HeadwayError, match=f"^{name}: the patched config did not take effect"):
        patching.check_built(tiny.build(base), design)
    model = tiny.build(base, design)
    patching.check_built(model, design)
    for knob_name, knob in space.knobs.items():
        for value in ends_of(knob):
            try:
                other = space.canonicalise({**awake(space, knob_name, prefixed(space)), knob_name: value})
            except UserError:  # illegal on this base
                continue
            if other and space.architecture(other) != space.architecture(design):
                with pytest.raises(HeadwayError, match="did not take effect"):
                    patching.check_built(model, other)


@pytest.mark.parametrize(("name", "key"), ALONE)
def test_memory_format_changes_nothing(name: str, key: str, tiny: Any) -> None:
    """Trials train and are timed in channels-last, bundles run in either."""
    if key == "VFNetHead":
        pytest.skip("mmcv's own deformable convolutions, part of this base, refuse channels-last tensors")
    if not families()[name].heads and key not in THOROUGH and not FACTS[key].roi:
        pytest.skip("what this family changes is the same for all dense heads")
    for plain in in_double(name, key, tiny):
        turned = copy.deepcopy(plain).to(memory_format=torch.channels_last)
        for one, other in zip(passed(plain, tiny), passed(turned, tiny, torch.channels_last), strict=True):
            assert torch.allclose(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("name", "key"), ALONE)
def test_cuda_gives_the_same(name: str, key: str, tiny: Any) -> None:
    for plain in in_double(name, key, tiny):
        for part in plain.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0  # its random numbers are the device's
        there = copy.deepcopy(plain).cuda()
        for one, other in zip(passed(plain, tiny), passed(there, tiny), strict=True):
            assert torch.allclose(one, other.cpu(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("name", "key"), [*ALONE, *(pytest.param(None, key, id=f"base-{key}") for key in FACTS)])
@torch.no_grad()
def test_it_predicts_in_bfloat16(name: str | None, key: str, tiny: Any) -> None:
    """Within what 8 bits of mantissa leave, as boxes of float32; with ``name`` None the base itself."""
    for design in few(space_of(key, name))[:2] if name else [{}]:
        plain = tiny.build(tiny.base_config(key), design)
        plain.init_weights()
        config = patching.compute_in(patching.apply(tiny.base_config(key), design), "bfloat16")
        short = MODELS.build(ConfigDict(config)).eval()
        short.load_state_dict(plain.state_dict())
        for result in short(*tiny.batch(), mode="predict"):
            assert result.pred_instances.bboxes.dtype == result.pred_instances.scores.dtype == torch.float32
            assert torch.isfinite(result.pred_instances.bboxes).all()
        if hasattr(plain, "roi_head"):
            continue  # which RoIs there are hangs on the last bits of scores
        ours, theirs = (tree_leaves(model(*tiny.batch(), mode="tensor")) for model in (short, plain.eval()))
        assert {out.dtype for out in ours} == {torch.float32}
        wanted = torch.cat([out.flatten() for out in theirs])
        assert (torch.cat([out.flatten() for out in ours]) - wanted).norm() <= 0.05 * wanted.norm()


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
@pytest.mark.parametrize(("name", "key"), [*ALONE, *(pytest.param(None, key, id=f"base-{key}") for key in FACTS)])
def test_it_trains_in_bfloat16(name: str | None, key: str, device: str, tiny: Any) -> None:
    """Every weight gets a gradient, and all point where those of float32 do, within what 8 bits of mantissa leave."""
    design = few(space_of(key, name))[0] if name else {}
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny.build(tiny.base_config(key), design)
        model.init_weights()
        model = spaces.autocast.keep_single(model) if dtype != torch.float32 else model
        torch.manual_seed(5)  # which RoIs are sampled
        with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            loss = tiny.total_loss(model.to(device).train())
        assert loss.dtype == torch.float32
        loss.backward()
        gradients.append({name: part.grad for name, part in model.named_parameters() if part.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    one, other = (torch.cat([part.flatten() for part in parts.values()]) for parts in gradients)
    assert torch.cosine_similarity(one, other, 0) > 0.96
    assert 0.9 < other.norm() / one.norm() < 1.1


def in_double(name: str, key: str, tiny: Any) -> Iterator[Any]:
    """Detectors of the defaults, the ends of the knobs, and where it is thorough, corners.

    In double precision, where rounding moves no sample across a pixel's border (the gradient jumps there).
    """
    space = space_of(key, name)
    found = designs(space, corners=4)[: 8 if key in THOROUGH else 3] if families()[name].heads else few(space)[-2:]
    for design in found:
        plain = tiny.build(tiny.base_config(key), design).double()
        plain.init_weights()
        for parameter_name, parameter in plain.named_parameters():
            if "conv_offset" in parameter_name or ".scale." in parameter_name:
                # At zero, an offset could be misread unnoticed, as could a scale at an integer.
                torch.nn.init.normal_(parameter, 1.3 if parameter_name.endswith(".scale.bias") else 0.0, std=0.3)
        yield plain


def passed(model: Any, tiny: Any, memory_format: torch.memory_format = torch.contiguous_format) -> list[torch.Tensor]:
    """What the heads give, with RoIs of our own, and the gradients of all weights that it depends on."""
    torch.manual_seed(3)  # dropout
    device = next(model.parameters()).device
    maps = model.extract_feat(tiny.batch()[0].to(device).double().to(memory_format=memory_format))
    flat = [tensor for group in dense_head(model)(maps) for tensor in group]
    if hasattr(model, "roi_head"):
        # mmcv's own pooling misreads channels-last maps on a CPU.
        roi = model.roi_head
        rois = torch.tensor([[0, 8.0, 8.0, 40.0, 44.0], [1, 26.0, 12.0, 78.0, 60.0]]).to(maps[0])
        pooled = roi.bbox_roi_extractor
        pooled = pooled[0] if isinstance(pooled, torch.nn.ModuleList) else pooled
        x = pooled([level.contiguous() for level in maps], rois).to(memory_format=memory_format)
        x = roi.shared_head(x) if roi.with_shared_head else x
        for head in roi.bbox_head if isinstance(roi.bbox_head, torch.nn.ModuleList) else [roi.bbox_head]:
            flat += head(x)
    torch.stack([tensor.square().mean() for tensor in flat]).sum().backward()
    return [*flat, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]
