"""Training by iterations that resumes exactly where it stopped."""

train_cfg = dict(type='ExactIterBasedTrainLoop')
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
