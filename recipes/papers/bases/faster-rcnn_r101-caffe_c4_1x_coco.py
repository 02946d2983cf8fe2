"""Faster R-CNN C4 with a ResNet-101 (key parts, tables 3 and 4): mmdet has it with a ResNet-50."""

_base_ = "mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py"

weights = dict(type="Pretrained", checkpoint="open-mmlab://detectron2/resnet101_caffe")
model = dict(
    backbone=dict(depth=101, init_cfg=weights),
    roi_head=dict(shared_head=dict(depth=101, init_cfg=weights)),
)
