"""TOOD with a Swin-L (SlimHead, table 9), 2x schedule; the backbone's settings are mmdet's for Swin-L."""

_base_ = "mmdet::tood/tood_r50_fpn_ms-2x_coco.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="SwinTransformer",
        pretrain_img_size=384,
        embed_dims=192,
        depths=[2, 2, 18, 2],
        num_heads=[6, 12, 24, 48],
        window_size=12,
        drop_path_rate=0.2,
        patch_norm=True,
        out_indices=(1, 2, 3),
        with_cp=True,
        convert_weights=True,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
            "swin_large_patch4_window12_384_22k.pth",
        ),
    ),
    # The pyramid begins with P3, so the backbone's first stage is not given out.
    neck=dict(in_channels=[384, 768, 1536], start_level=0),
)
# The paper does not say how Swin-L is optimised; this is the Swin paper's way.
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="AdamW", lr=0.0001, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={
            "absolute_pos_embed": dict(decay_mult=0.0),
            "relative_position_bias_table": dict(decay_mult=0.0),
            "norm": dict(decay_mult=0.0),
        }
    ),
)
