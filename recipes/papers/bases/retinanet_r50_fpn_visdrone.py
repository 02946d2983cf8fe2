"""RetinaNet on VisDrone (QueryDet, section 4.1): 50,000 iterations of 16 patches, decays after 30,000 and 40,000."""

_base_ = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"

model = dict(bbox_head=dict(num_classes=10))
train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters=50_000, val_interval=50_000)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", begin=0, end=50_000, by_epoch=False, milestones=[30_000, 40_000], gamma=0.1),
]
