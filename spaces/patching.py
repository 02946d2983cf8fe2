"""From a design to a patched config, and the proof that a built model follows it."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spaces.base import dense_part, facts, plain_type
from spaces.errors import HeadwayError, unknown
from spaces.registry import families, patch_module, patch_of


def split(knobs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Groups ``{"slimhead.ratio": 0.5}`` by family: ``{"slimhead": {"ratio": 0.5}}``, in the order of the families.

    Raises:
        UserError: There is no such family.
    """
    grouped: dict[str, dict[str, Any]] = {name: {} for name in families()}
    for key, value in knobs.items():
        name, _, knob = key.partition(".")
        if name not in grouped:
            raise unknown("design", name, grouped)
        grouped[name][knob] = value
    return {name: values for name, values in grouped.items() if values}


def apply(model: Mapping[str, Any], knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Patches the ``model`` part of a base config.

    Args:
        model: Plain nested dicts and lists; left as it is.
        knobs: A canonical design.

    Returns:
        A new ``model`` config; an equal copy for the empty design.
    """
    patched: dict[str, Any] = copy.deepcopy(dict(model))
    for name, values in split(knobs).items():
        patched = patch_of(name)(values, patched)
    return patched


def optimizer_keys(model: Mapping[str, Any], knobs: Mapping[str, Any], optimizer: str) -> dict[str, dict[str, float]]:
    """Gives what families want an optimizer to know of their parameters (``paramwise_cfg.custom_keys``).

    Args:
        model: A ``model`` config of the base.
        knobs: A canonical design.
        optimizer: Type of the optimizer, ``AdamW`` for instance.
    """
    found: dict[str, dict[str, float]] = {}
    for name, values in split(knobs).items():
        keys = getattr(patch_module(name), "optimizer_keys", None)
        if keys is not None:
            found |= keys(values, facts(model), any(word in optimizer for word in ("Adam", "Lamb", "LION", "Lion")))
    return found


def learning(knobs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Gives the design to train first where a part of the network is to be learned; ``None`` where nothing is."""
    return _with_learners(knobs, lambda name, values: patch_module(name).learning(values))


def settled(knobs: Mapping[str, Any], learned: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the design that a learned one became.

    Args:
        knobs: A canonical design for which ``learning`` gives another one.
        learned: What the ``Observer`` of the family's ``modules.py`` found.
    """
    return _with_learners(knobs, lambda name, values: patch_module(name).settled(values, learned)) or dict(knobs)


def unlearned(knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Gives a design without the families that learn: what can be counted before anything is learned."""
    learners = _learners(knobs)
    return {key: value for key, value in knobs.items() if key.partition(".")[0] not in learners}


def observer(knobs: Mapping[str, Any], model: Any) -> Any:
    """Gives the ``Observer`` of the family that learns, attached to a model built from ``learning(knobs)``."""
    name = next(iter(_learners(knobs)))
    return importlib.import_module(families()[name].modules).Observer(model)


def learning_share(knobs: Mapping[str, Any]) -> float:
    """Gives the share of the epochs in which a design learns."""
    values: dict[str, Any] = next(iter(_learners(knobs).values()))
    return float(values["learn_share"])


def transfers(knobs: Mapping[str, Any]) -> bool:
    """Says whether the settled network starts from the learning one's weights."""
    values: dict[str, Any] = next(iter(_learners(knobs).values()))
    return bool(values["transfer"])


def summary(knobs: Mapping[str, Any], rows: Sequence[Any]) -> dict[str, Any]:
    """Averages what an ``observer`` gave for each image."""
    found: dict[str, Any] = patch_module(next(iter(_learners(knobs)))).summary(rows)
    return found


def translated(
    knobs: Mapping[str, Any], weights: Mapping[str, Any], model: Any, *, trained: bool = False
) -> dict[str, Any]:
    """Gives weights of the base, or of a learning network, under the names and shapes of a design's model.

    A family that renames or cuts weights has ``translate`` in its ``modules.py``; all others leave them. One whose
    layers compute something else than the base's with the same weights has ``preserve``.

    Args:
        knobs: A canonical design.
        weights: By name.
        model: The design's model.
        trained: Whether the weights were trained in the base, so that the design shall start as what they compute.
    """
    found = dict(weights)
    for name in split(knobs):
        modules = importlib.import_module(families()[name].modules)
        for hook in ("translate", "preserve") if trained else ("translate",):
            if hasattr(modules, hook):
                found = getattr(modules, hook)(found, model)
    return found


def _learners(knobs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found = {}
    for name, values in split(knobs).items():
        conditions = families()[name].learns
        if conditions and all(condition.holds(values) for condition in conditions):
            found[name] = values
    return found


def _with_learners(
    knobs: Mapping[str, Any], change: Callable[[str, dict[str, Any]], Mapping[str, Any]]
) -> dict[str, Any] | None:
    learners = _learners(knobs)
    if not learners:
        return None
    rest = {key: value for key, value in knobs.items() if key.partition(".")[0] not in learners}
    for name, values in learners.items():
        rest.update({f"{name}.{key}": value for key, value in change(name, values).items()})
    return rest


def add_mixin(model: dict[str, Any], mixin: Mapping[str, Any]) -> dict[str, Any]:
    """Puts a mixin onto the dense head: its type becomes ``ComposedHead``, which builds the base head's class with it.

    Args:
        model: A ``model`` config, changed in place.
        mixin: ``{"type": NAME, ...}``, NAME as registered in mmdet's ``MODELS``.
    """
    head = model[dense_part(model)]
    if plain_type(head) != "ComposedHead":
        # Types with a scope may stand in a config of another default scope than mmdet's.
        composed = "mmdet.ComposedHead" if "." in head["type"] else "ComposedHead"
        head["base_type"], head["type"], head["mixins"] = head["type"], composed, []
    head["mixins"] = [*head["mixins"], dict(mixin)]
    return model


def compute_in(model: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Has a detector predict in a shorter type than it is trained in; see ``spaces.autocast``.

    Args:
        model: A ``model`` config, patched.
        dtype: ``float32``, which leaves it as it is, ``bfloat16`` or ``float16``.
    """
    if dtype == "float32":
        return dict(model)
    name = "mmdet.AutocastDetector" if "." in model["type"] else "AutocastDetector"
    return {**model, "type": name, "detector_type": model["type"], "dtype": dtype}


def imports(knobs: Mapping[str, Any], dtype: str = "float32") -> list[str]:
    """Modules that must be imported before the patched config is built (``custom_imports``)."""
    used = list(split(knobs))
    found = ["spaces.modules", *(families()[name].modules for name in used)] if used else []
    return found if dtype == "float32" else [*found, "spaces.autocast"]


def check_built(model: Any, knobs: Mapping[str, Any]) -> None:
    """Asserts that a built detector follows the design.

    Raises:
        HeadwayError: A knob did not reach the network.
    """
    for name, values in split(knobs).items():
        problem = importlib.import_module(families()[name].modules).mismatch(model, values)
        if problem:
            raise HeadwayError(f"{name}: the patched config did not take effect in the built model: {problem}.")
