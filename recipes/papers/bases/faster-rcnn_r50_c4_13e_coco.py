"""Faster R-CNN C4 in POD's 1x schedule (section 4.1): 13 epochs, decays after 8 and 11.

The paper synchronises batch norms over its GPUs; here they are frozen, as in mmdet's config.
"""

_base_ = "mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py"

# mmdet's is of Caffe's style, with the stride in the 1x1 convolutions. The paper has a dilation below 1 at each
# stride of 2, so the strides are in the 3x3 ones that it makes learn.
weights = dict(type="Pretrained", checkpoint="torchvision://resnet50")
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(style="pytorch", init_cfg=weights),
    roi_head=dict(shared_head=dict(style="pytorch", init_cfg=weights)),
)
train_cfg = dict(max_epochs=13)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", begin=0, end=13, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
