"""Choices for arguments of commands, in a module that is imported fast."""

SPLITS = ('train', 'val', 'test')
"""The data loaders of a config."""
SUFFIXES = ('.pth', '.pth.tar', '.safetensors')
"""Suffixes of checkpoints that can be written."""
FORMATS = {
    'detection': ('overlay', 'coco', 'csv'),
    'segmentation': ('overlay', 'png', 'csv'),
    'classification': ('overlay', 'csv'),
}
"""Formats of predictions for each task; by default all are written."""
FSDP_UNITS = ('*Block', '*EncoderLayer', '*DecoderLayer')
"""Classes whose modules are separate units of FSDP: names with wildcards as in file names."""
TRACKERS = ('tensorboard', 'wandb', 'mlflow')
"""Tools that can track a training."""
