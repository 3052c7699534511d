"""What arguments may be: known to the commands before anything that takes seconds is imported."""

SPLITS = ('train', 'val', 'test')
"""The data loaders of a config."""
SUFFIXES = ('.pth', '.pth.tar', '.safetensors')
"""Of the checkpoints that are written."""
FORMATS = {
    'detection': ('overlay', 'coco', 'csv'),
    'segmentation': ('overlay', 'png', 'csv'),
    'classification': ('overlay', 'csv'),
}
"""What can be written of the predictions of each task; by default all of it."""
FSDP_UNITS = ('*Block', '*Bottleneck', '*EncoderLayer', '*DecoderLayer')
"""Classes whose modules FSDP shards each by itself: names, with the wildcards of file names."""
TRACKERS = ('tensorboard', 'wandb', 'mlflow')
"""The tools that a training can be followed with."""
