"""Collating of images, which need one size, in data loaders."""

from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import FUNCTIONS

from ..errors import UserError


@FUNCTIONS.register_module()
def collate_equal_sizes(batch: list[dict], how: str, padded_to: tuple[int, int]) -> Any:
    """Collate samples, all of whose images must have one size."""
    sizes: dict[tuple, str] = {}
    for sample in batch:
        values: list[Any] = [sample['inputs'], sample.get('data_samples')]
        # Test-time augmentation makes several of one image.
        inputs, info = (value[0] if isinstance(value, list) else value for value in values)
        channels, *size = inputs.shape
        key = (channels, *map(max, size, padded_to))
        sizes.setdefault(key, getattr(info, 'img_path', 'an image'))
    if len(sizes) > 1:
        shown = ', '.join(f'{name} {w} x {h}' for (_, h, w), name in list(sizes.items())[:2])
        raise UserError(
            f'images of a batch differ in size after the pipeline ({shown}): resize or crop them '
            'in the pipeline, or set batch_size=1 in the data loader'
        )
    return FUNCTIONS.get(how)(batch)


def prepare_collating(cfg: Config, name: str) -> None:
    """Use ``collate_equal_sizes`` in a data loader whose model cannot pad all images.

    mmdet pads all, mmseg those in training, up to the ``size`` of its data preprocessor.
    """
    loader: ConfigDict = cfg[name]
    given = loader.get('collate_fn') or dict(type='pseudo_collate')
    how = given.get('type') if isinstance(given, dict) else given
    scope = cfg.get('default_scope')
    size: Any = (0, 0)
    if scope == 'mmseg' and name == 'train_dataloader':
        batches = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
        size = batches.get('size')
    strict = dict(mmseg='pseudo_collate', mmpretrain='default_collate')
    if how == strict.get(scope) and size:
        loader.collate_fn = dict(type='collate_equal_sizes', how=how, padded_to=tuple(size))
