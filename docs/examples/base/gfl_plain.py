# A GFL on a backbone of our own; all else is the small GFL that Headway ships.
_base_ = "../../../trainers/bases/gfl_r18_half.py"

custom_imports = dict(imports=["plain_backbone"], allow_failed_imports=False)
model = dict(
    backbone=dict(_delete_=True, type="PlainBackbone", width=32),
    # Three maps, all of them used: strides 8, 16 and 32, and one more of 64.
    neck=dict(in_channels=[32, 64, 128], start_level=0),
)
