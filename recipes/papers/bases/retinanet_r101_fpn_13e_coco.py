"""RetinaNet with a ResNet-101 in POD's 1x schedule (section 4.1): 13 epochs, decays after 8 and 11.

The paper synchronises batch norms over its GPUs; here they are frozen, as in mmdet's config.
"""

_base_ = "mmdet::retinanet/retinanet_r101_fpn_1x_coco.py"

# 0.00125 an image.
optim_wrapper = dict(optimizer=dict(lr=0.02))
train_cfg = dict(max_epochs=13)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", begin=0, end=13, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
