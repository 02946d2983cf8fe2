"""RetinaNet with the finer level P2 (QueryDet, table 3, row HR): anchors of P2 are half as large as those of P3."""

_base_ = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"

model = dict(
    neck=dict(start_level=0, num_outs=6),
    bbox_head=dict(anchor_generator=dict(strides=[4, 8, 16, 32, 64, 128])),
)
