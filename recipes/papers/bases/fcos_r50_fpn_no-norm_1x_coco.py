"""FCOS without a norm in its towers (QueryDet, table 8).

A group norm looks at a whole map, so a sparse pass would give other results than the dense one.
"""

_base_ = "mmdet::fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py"

model = dict(bbox_head=dict(norm_cfg=None))
