"""TOOD on PASCAL VOC 07+12 (SlimHead, section 4.4): mmdet's 1x config with one decay, after 9 of 12 epochs."""

_base_ = "mmdet::tood/tood_r50_fpn_1x_coco.py"

param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", begin=0, end=12, by_epoch=True, milestones=[9], gamma=0.1),
]
