# R-FCN with the backbone of its paper and of the key-part paper's tables 3 and 4.
_base_ = "rfcn_r50.py"

model = dict(
    backbone=dict(depth=101, init_cfg=dict(type="Pretrained", checkpoint="open-mmlab://detectron2/resnet101_caffe"))
)
