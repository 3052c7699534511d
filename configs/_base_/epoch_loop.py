"""Training by epochs that resumes exactly where it stopped; one validation per epoch."""

train_cfg = dict(type='ExactEpochBasedTrainLoop', val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
