"""Faster R-CNN C4 with a ResNet-101 in POD's 1x schedule (section 4.1)."""

_base_ = "faster-rcnn_r50_c4_13e_coco.py"

weights = dict(type="Pretrained", checkpoint="torchvision://resnet101")
model = dict(
    backbone=dict(depth=101, init_cfg=weights),
    roi_head=dict(shared_head=dict(depth=101, init_cfg=weights)),
)
