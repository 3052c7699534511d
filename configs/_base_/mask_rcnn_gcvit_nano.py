"""A light Mask R-CNN on the nano GC ViT, to train on a CPU without published weights."""

_base_ = ['./mask_rcnn_gcvit_tiny.py', './nano_arch.py']

model = dict(
    backbone=dict(_delete_=True, type='GCViT', arch=_base_.nano_arch, window_size=8),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(in_channels=64, conv_out_channels=64),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=300, max_per_img=150),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100)),
)
