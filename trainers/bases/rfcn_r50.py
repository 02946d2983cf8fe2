# R-FCN (Dai et al. 2016) with a ResNet-50 and 7 x 7 bins: mmdet's Faster R-CNN on a dilated fifth stage (DC5), which is
# R-FCN's backbone of stride 16, with R-FCN's convolutions and vote in the place of the two-FC head.
#
# The original's RPN stands on the fourth stage and has 512 channels; here it has these, but shares the fifth stage's
# map with the head, as in mmdet's DC5 detectors. Proposals, sampling and schedule are mmdet's.
_base_ = "mmdet::faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco.py"

custom_imports = dict(imports=["spaces.keyparts.detectors"], allow_failed_imports=False)
model = dict(
    rpn_head=dict(feat_channels=512),
    roi_head=dict(
        bbox_roi_extractor=dict(
            _delete_=True,
            type="PositionSensitiveRoIExtractor",
            in_channels=2048,
            mid_channels=1024,
            num_classes=80,
            bins=7,
            pool="average",
            reg_class_agnostic=True,
            featmap_strides=[16],
        ),
        bbox_head=dict(
            _delete_=True,
            type="RFCNBBoxHead",
            num_classes=80,
            reg_class_agnostic=True,
            bbox_coder=dict(
                type="DeltaXYWHBBoxCoder", target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[0.1, 0.1, 0.2, 0.2]
            ),
            loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type="SmoothL1Loss", beta=1.0, loss_weight=1.0),
        ),
    ),
)
