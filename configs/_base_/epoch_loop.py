"""Training by epochs that goes on exactly where it stopped; one validation an epoch."""

train_cfg = dict(type='ExactEpochBasedTrainLoop', val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
