"""Builds a dense head from its base class and the mixins of the families."""

from mmdet.registry import MODELS
from torch import nn


@MODELS.register_module()
def ComposedHead(base_type: str, mixins: list[dict], **kwargs) -> nn.Module:  # noqa: N802
    """Builds the head ``base_type`` with mixins in front of it.

    Args:
        base_type: Registered type of the base head.
        mixins: ``{'type': NAME, ...}`` each, in any order; the other keys go to the mixin's ``setup_mixin``.
        **kwargs: Arguments of the base head.

    Returns:
        An instance of a class that derives from the mixins and the base head, with the base head's parameter names.
    """
    # Sorted so that a combination is one class whatever order the patches came in.
    parts = [(MODELS.get(mixin["type"]), mixin) for mixin in sorted(mixins, key=_order)]
    base = MODELS.get(base_type)
    name = "_".join([*(part.__name__ for part, _ in parts), base.__name__])
    head = type(name, (*(part for part, _ in parts), base), {})(**kwargs)
    for part, mixin in parts:
        part.setup_mixin(head, **{key: value for key, value in mixin.items() if key != "type"})
    return head


def _order(mixin: dict) -> tuple:
    # Layers are replaced before towers are wrapped.
    return (getattr(MODELS.get(mixin["type"]), "setup_order", 10), mixin["type"])


def dense_head(model: nn.Module) -> nn.Module:
    """The dense head of a built detector: the RPN of a two-stage one, else the box head."""
    return getattr(model, "rpn_head", None) or model.bbox_head
