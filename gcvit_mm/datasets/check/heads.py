"""The rules between the classes of a data set and the config: their names and their number."""

import os
from collections import Counter

from mmengine.config import Config, ConfigDict
from mmengine.fileio import list_from_file

from ...config import dicts_of, metainfo_of
from ...errors import UserError

# Parts of a model whose ``num_classes`` is that of the data set.
CLASS_COUNTERS = (
    'bbox_head',
    'mask_head',
    'decode_head',
    'auxiliary_head',
    'model.head',
    'data_preprocessor',
)


def check_heads(cfg: Config, loader: str, classes: tuple[str, ...]) -> None:
    """Raise a ``UserError`` if a head has another number of classes than the data set.

    mmpretrain's data preprocessor, which makes the targets of mixed images, is checked too.
    """
    parts = {'model': cfg.model, 'data_preprocessor': cfg.get('data_preprocessor')}
    for key, part in dicts_of(parts):
        count = part.get('num_classes', len(classes))
        # mmseg's auxiliary heads for edges have one class with all data sets.
        edges = 'auxiliary_head' in key and count == 1
        is_head = key.rstrip('.0123456789').endswith(CLASS_COUNTERS) and not edges
        if classes and is_head and count != len(classes):
            raise UserError(
                f'{key}.num_classes is {count}, but {loader}.dataset has {len(classes)} classes '
                f'({", ".join(classes[:5])}{", ..." if len(classes) > 5 else ""}): make them equal'
            )


def class_names(cfg: Config, loader: str, dataset: ConfigDict) -> tuple[str, ...]:
    """The names of the classes of a data set.

    Raises:
        UserError: They are not a list of different texts, the file of them cannot be read, or a
            segmenter's palette has another length.
    """
    given = dataset.get('metainfo') or {}
    if not isinstance(given, dict):
        raise UserError(f'{loader}.dataset.metainfo is {given!r}: write dict(classes=...)')
    metainfo = metainfo_of(cfg, dataset)
    classes = metainfo.get('classes')
    key = f'{loader}.dataset.metainfo.classes'
    if classes is None:
        return ()
    if isinstance(classes, str):
        if not os.path.isfile(classes):
            raise UserError(f'{key} is the text {classes!r}: write ({classes!r},), with the comma')
        classes = list_from_file(classes)
    if not isinstance(classes, list | tuple) or not classes:
        raise UserError(f'{key} is {classes!r}: write a list of names')
    wrong = [name for name in classes if not isinstance(name, str)]
    if wrong:
        raise UserError(f'{key} has {wrong[0]!r}, which is no text: write {str(wrong[0])!r}')
    repeated = [name for name, times in Counter(classes).items() if times > 1]
    own = metainfo_of(cfg, ConfigDict(type=dataset.type)).get('classes') or ()
    if repeated and list(classes) != list(own):  # ImageNet has two cranes
        raise UserError(f'{key} has {repeated[0]!r} twice: remove one')
    palette = metainfo.get('palette', [])
    if cfg.get('default_scope') == 'mmseg' and palette not in ([], ()):
        count = len(palette) if isinstance(palette, list | tuple) else 0
        # A selection of the data set's own classes takes its colours of their palette.
        if count < len(classes) or (count > len(classes) and not own):
            raise UserError(
                f'{loader}.dataset.metainfo.palette has {count} colours for {len(classes)} '
                'classes: write one for each'
            )
    return tuple(classes)
