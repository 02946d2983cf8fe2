"""ATSS on WIDER FACE (DDOD, section 5.6), without the SSH module, which mmdet does not have.

The paper's rate falls from 7.5e-3 to 7.5e-5 in a cosine of 30 epochs, 20 times over, at a batch of 24.
"""

_base_ = "mmdet::atss/atss_r50_fpn_1x_coco.py"

model = dict(
    backbone=dict(
        # "we adopt DCN": where is not said; the last three stages are the usual place.
        dcn=dict(type="DCN", deform_groups=1, fallback_on_stride=False),
        stage_with_dcn=(False, True, True, True),
    ),
    bbox_head=dict(num_classes=1, loss_bbox=dict(_delete_=True, type="DIoULoss", loss_weight=2.0)),
)
train_cfg = dict(max_epochs=600)
optim_wrapper = dict(optimizer=dict(lr=7.5e-3))
auto_scale_lr = dict(base_batch_size=24)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="CosineRestartLR", periods=[30] * 20, restart_weights=[1.0] * 20, eta_min=7.5e-5, by_epoch=True),
]
