"""RetinaNet with a ShuffleNet V2 (QueryDet, table 7); its stages of stride 8, 16 and 32 feed the pyramid."""

_base_ = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"

# mmdet has no ShuffleNet V2.
custom_imports = dict(imports=["spaces.querydet.backbones"])
model = dict(
    backbone=dict(
        _delete_=True,
        type="ShuffleNetV2",
        # Strides 4, 8, 16 and 32: QueryDet adds P2 from the first.
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(type="Pretrained", checkpoint="torchvision://shufflenet_v2_x1_0"),
    ),
    neck=dict(in_channels=[24, 116, 232, 464]),
)
