"""RetinaNet with a MobileNet V2 (QueryDet, table 7); its stages of stride 8, 16 and 32 feed the pyramid."""

_base_ = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="MobileNetV2",
        # Strides 4, 8, 16 and 32: QueryDet adds P2 from the first.
        out_indices=(1, 2, 4, 6),
        init_cfg=dict(type="Pretrained", checkpoint="open-mmlab://mmdet/mobilenet_v2"),
    ),
    neck=dict(in_channels=[24, 32, 96, 320]),
)
