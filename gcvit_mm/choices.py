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
"""What can be written of the predictions of each task; by default all of it."""
FSDP_UNITS = ('*Block', '*Bottleneck', '*EncoderLayer', '*DecoderLayer')
"""Classes whose modules FSDP shards each by itself: names, with the wildcards of file names."""
TRACKERS = ('tensorboard', 'wandb', 'mlflow')
"""Tools that can track a run."""
TASKS = ('detection', 'instances', 'segmentation', 'classification')
"""Tasks of data sets; instances are objects with masks."""
LABEL_FORMATS = (
    'coco',
    'panoptic',
    'cvat',
    'labelme',
    'via',
    'supervisely',
    'voc',
    'yolo',
    'csv',
    'instance-masks',
    'colour-masks',
    'label-maps',
    'folders',
)
"""Formats of labels that can be read, in the order in which they are looked for."""
LABEL_WRITERS = ('yolo', 'voc', 'coco')
"""Formats of labels that can be written for other tools."""
