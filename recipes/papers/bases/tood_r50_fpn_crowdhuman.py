"""TOOD on CrowdHuman (SlimHead, section 4.4): mmdet's 1x config with 30 epochs, decays after 24 and 28."""

_base_ = "mmdet::tood/tood_r50_fpn_1x_coco.py"

train_cfg = dict(max_epochs=30)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", begin=0, end=30, by_epoch=True, milestones=[24, 28], gamma=0.1),
]
