"""GC ViT in the configs of mmdet, mmseg and mmpretrain, by their own scripts, as the page says."""

import ast
import math
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from command_line import ENVIRONMENT, ROOT
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData

from gcvit_mm import ARCHS, GCViT
from gcvit_mm.__main__ import main
from gcvit_mm.errors import UserError

PAGE = (ROOT / 'docs/use_in_your_config.md').read_text()
CHILDREN = {
    code.partition("'")[2].partition('::')[0]: code
    for code in re.findall(r'```python\n(_base_.+?)```', PAGE, re.DOTALL)
}
CHANNELS = re.findall(r'^\| (`\w+`.*) \| (\d+, \d+, \d+, \d+) \|$', PAGE, re.MULTILINE)
BASES = {
    base: (indices, rest)
    for base, indices, rest in re.findall(
        r'^\| `(\S+::\S+)` \| `([\d, ]+)` \| `(.+)` \|$', PAGE, re.MULTILINE
    )
}
SIZE = 64
# What must fit such small images.
SMALLER = {
    'dino': {'model.num_queries': 50},
    'mask2former_r50_8xb2-lsj': {'model.data_preprocessor.batch_augments.0.size': (SIZE, SIZE)},
}


def read(tmp_path: Path, text: str) -> Config:
    path = tmp_path / 'my_config.py'
    path.write_text(text)
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    return cfg


def build(cfg: Config) -> torch.nn.Module:
    """The model as mmengine's runner makes it on one device."""
    if 'data_preprocessor' in cfg:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return revert_sync_batchnorm(MODELS.build(cfg.model))


def batch(cfg: Config) -> dict:
    """Two images with what the config's package trains on."""
    samples = {'mmdet': detection, 'mmseg': segmentation, 'mmpretrain': classification}
    sample = samples[cfg.default_scope]
    inputs = [torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8) for _ in range(2)]
    meta = dict(img_shape=(SIZE, SIZE), ori_shape=(SIZE, SIZE), scale_factor=(1.0, 1.0), img_id=0)
    return dict(inputs=inputs, data_samples=[sample(cfg, meta) for _ in inputs])


def classification(cfg, meta):
    from mmpretrain.structures import DataSample

    return DataSample(metainfo=meta).set_gt_label(3)


def segmentation(cfg, meta):
    from mmseg.structures import SegDataSample

    labels = torch.zeros(1, SIZE, SIZE, dtype=torch.long)
    labels[:, 20:50, 10:40] = 7
    return SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=labels))


def detection(cfg, meta):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    boxes = torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 20.0, 60.0, 60.0]])
    found = InstanceData(bboxes=boxes, labels=torch.tensor([1, 7]))
    if "'with_mask': True" in str(cfg.train_dataloader):
        masks = torch.zeros(2, SIZE, SIZE, dtype=torch.uint8)
        masks[0, 6:50, 4:40] = masks[1, 20:60, 30:60] = 1
        found.masks = BitmapMasks(masks.numpy(), SIZE, SIZE)
    nothing = InstanceData(bboxes=torch.zeros(0, 4))
    return DetDataSample(metainfo=meta, gt_instances=found, ignored_instances=nothing)


@pytest.mark.parametrize('base', BASES)
def test_a_base_trains_the_whole_backbone_and_predicts(base, tmp_path):
    indices, rest = BASES[base]
    imports = ['gcvit_mm', 'mmdet.models'] if 'mmseg::mask2former' in base else ['gcvit_mm']
    assert f'imports={imports}' in PAGE
    cfg = read(
        tmp_path,
        f"""
_base_ = '{base}'
custom_imports = dict(imports={imports}, allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True, type='GCViT', arch='xxtiny', drop_path_rate=0.0, out_indices=({indices},)
    ),
    {rest},
)
""",
    )
    for part, change in SMALLER.items():
        cfg.merge_from_dict(change if part in base else {})
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = (SIZE, SIZE)
    torch.manual_seed(0)
    model = build(cfg)
    model.init_weights()
    optim, data = build_optim_wrapper(model, cfg.optim_wrapper), batch(cfg)

    model.train()
    losses = model(**model.data_preprocessor(data, True), mode='loss')
    loss, logged = model.parse_losses(losses)
    assert all(value.isfinite() for value in logged.values()), logged
    optim.backward(loss)
    # In training by several processes a parameter without a gradient is an error.
    idle = [n for n, p in model.backbone.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle
    optim.step()

    model.eval()
    with torch.no_grad():
        results = model.test_step(data)
    assert len(results) == 2
    for result in results:
        check(result)


def check(result):
    """The prediction for one image is complete and finite."""
    if 'pred_score' in result:
        assert result.pred_score.sum() == pytest.approx(1, abs=1e-4)
    elif 'pred_sem_seg' in result:
        labels = result.pred_sem_seg.data
        assert labels.shape == (1, SIZE, SIZE)
        assert labels.max() < 150
    else:
        found = result.pred_instances
        assert found.bboxes.isfinite().all()
        assert ((found.scores >= 0) & (found.scores <= 1)).all()
        assert found.labels.numel() == 0 or found.labels.max() < 80


def test_the_page_shows_every_kind_of_model():
    assert CHILDREN.keys() == {'mmdet', 'mmseg', 'mmpretrain'}
    assert len(BASES) >= 15


@pytest.mark.parametrize('package', CHILDREN)
def test_the_examples_of_the_page_build(package, tmp_path):
    cfg = read(tmp_path, CHILDREN[package])
    assert cfg.model.backbone.init_cfg.checkpoint == 'gcvit://tiny'
    with torch.device('meta'):
        model = build(cfg).eval()
        assert isinstance(model.backbone, GCViT)
        images = torch.zeros(2, 3, SIZE, SIZE)
        model.extract_feat(images) if package == 'mmdet' else model(images, mode='tensor')


def test_the_page_lists_the_channels_of_every_arch():
    listed = {}
    for archs, channels in CHANNELS:
        for arch in re.findall(r'`(\w+)`', archs):
            listed[arch] = ast.literal_eval(channels)
    with torch.device('meta'):
        assert listed == {arch: GCViT(arch).out_channels for arch in ARCHS}


# --- Their own scripts ------------------------------------------------------------------------


def installed(package: str) -> Path:
    """Where pip puts a package's configs and tools."""
    return Path(find_spec(package).origin).parent / '.mim'


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def train_and_test(package, config, options, checkpoint, folder):
    """Run both scripts on a config; the losses are finite and the metrics those of the training."""
    options = ['--work-dir', 'work', '--cfg-options', *options]
    tools = installed(package) / 'tools'
    trained = run('-m', 'gcvit_mm', tools / 'train.py', config, *options, cwd=folder)
    assert trained.returncode == 0, trained.stdout
    losses = [float(loss) for loss in re.findall(r'\bloss: (\S+)', trained.stdout)]
    assert losses
    assert all(math.isfinite(loss) for loss in losses)
    test = tools / 'test.py', config, f'work/{checkpoint}'
    tested = run('-m', 'gcvit_mm', *test, *options, cwd=folder)
    assert tested.returncode == 0, tested.stdout
    assert metrics(tested.stdout, 'test') == metrics(trained.stdout, 'val')
    return metrics(tested.stdout, 'test')


def metrics(output, mode):
    """The metrics in the last line of a validation or a test."""
    line = re.findall(rf'\({mode}\).+', output)[-1]
    return dict(re.findall(r'([\w/]*(?:AP|IoU|Acc|accuracy)[\w/]*): +(\S+)', line))


def options(settings):
    """The words of ``--cfg-options``: ``each_`` is for all splits, ``eval_`` for those of tests."""
    words = []
    for key, value in settings.items():
        first, _, rest = key.partition('_')
        splits = {'each': ('train', 'val', 'test'), 'eval': ('val', 'test')}.get(first)
        keys = [f'{split}_{rest}' for split in splits] if splits else [key]
        words += [f'{key}={value}' for key in keys]
    return words


IN_PROCESS = {
    'each_dataloader.num_workers': 0,
    'each_dataloader.persistent_workers': False,
    'default_hooks.logger.interval': 1,
}


@pytest.mark.slow
def test_mmseg_trains_and_tests_a_stock_config_by_options_alone(tiny_shapes, tmp_path):
    (tmp_path / 'shapes').symlink_to(tiny_shapes)
    config = installed('mmseg') / 'configs/segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'
    command = re.search(rf'/configs/segformer/{config.name}(.+?)\n\n', PAGE, re.DOTALL)[1]
    flag, *shown = shlex.split(command.replace('\\\n', ''))
    assert flag == '--cfg-options'
    settings = IN_PROCESS | {
        'each_dataloader.dataset.data_root': 'shapes',
        'train_dataloader.dataset.pipeline.2.scale': (SIZE, SIZE),
        'train_dataloader.dataset.pipeline.3.crop_size': (SIZE, SIZE),
        'eval_dataloader.dataset.pipeline.1.scale': (SIZE, SIZE),
        'model.data_preprocessor.size': (SIZE, SIZE),
        'optim_wrapper.optimizer.lr': 1e-3,
        'param_scheduler': None,
        'train_cfg.max_iters': 10,
        'train_cfg.val_interval': 10,
        'default_hooks.checkpoint.interval': 10,
    }
    words = [*shown, *options(settings)]
    result = train_and_test('mmseg', config, words, 'iter_10.pth', tmp_path)
    assert float(result['mIoU']) > 5
    # The config that the run has written needs neither options nor -m gcvit_mm.
    saved = Config.fromfile(tmp_path / 'work' / config.name)
    assert saved.custom_imports == dict(imports='gcvit_mm')
    assert saved.model.backbone == dict(type='GCViT', arch='xxtiny')


@pytest.mark.slow
def test_mmdet_trains_and_tests_the_example(tiny_shapes, tmp_path):
    (tmp_path / 'shapes').symlink_to(tiny_shapes)
    (tmp_path / 'my_config.py').write_text(CHILDREN['mmdet'])
    settings = IN_PROCESS | {
        'each_dataloader.dataset.data_root': 'shapes/',
        'each_dataloader.dataset.metainfo.classes': 'disk,box,star',
        'train_dataloader.dataset.ann_file': 'annotations/instances_training.json',
        'eval_dataloader.dataset.ann_file': 'annotations/instances_validation.json',
        'train_dataloader.dataset.data_prefix.img': 'images/training/',
        'eval_dataloader.dataset.data_prefix.img': 'images/validation/',
        'train_dataloader.dataset.pipeline.2.scale': (SIZE, SIZE),
        'eval_dataloader.dataset.pipeline.1.scale': (SIZE, SIZE),
        'eval_evaluator.ann_file': 'shapes/annotations/instances_validation.json',
        'model.backbone.arch': 'xxtiny',
        'model.backbone.window_size': 7,
        'model.backbone.init_cfg': None,
        'model.roi_head.bbox_head.num_classes': 3,
        'model.roi_head.mask_head.num_classes': 3,
        'train_dataloader.batch_size': 4,
        'train_cfg.max_epochs': 1,
    }
    result = train_and_test('mmdet', 'my_config.py', options(settings), 'epoch_1.pth', tmp_path)
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= result.keys()


@pytest.mark.slow
def test_mmpretrain_trains_and_tests_the_example(tiny_shapes, tmp_path):
    (tmp_path / 'my_config.py').write_text(CHILDREN['mmpretrain'])
    for split, folder in {'train': 'training', 'val': 'validation'}.items():
        for i, image in enumerate(sorted((tiny_shapes / 'images' / folder).iterdir())):
            target = tmp_path / 'classes' / split / 'ab'[i % 2]
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, target)
    settings = IN_PROCESS | {
        'each_dataloader.dataset.data_root': 'classes',
        'each_dataloader.dataset.metainfo.classes': 'a,b',
        'train_dataloader.dataset.pipeline.1.scale': SIZE,
        'eval_dataloader.dataset.pipeline.1.scale': SIZE,
        'eval_dataloader.dataset.pipeline.2.crop_size': SIZE,
        'eval_evaluator.topk': 1,
        'model.backbone.arch': 'xxtiny',
        'model.backbone.init_cfg': None,
        'model.head.num_classes': 2,
        'data_preprocessor.num_classes': 2,
        'train_dataloader.batch_size': 4,
        'train_cfg.max_epochs': 1,
        'param_scheduler': None,
    }
    words = options(settings)
    result = train_and_test('mmpretrain', 'my_config.py', words, 'epoch_1.pth', tmp_path)
    assert result.keys() == {'accuracy/top1'}


# --- python -m gcvit_mm -----------------------------------------------------------------------


def test_a_script_is_run_as_python_runs_it_but_with_gcvit_mm_imported(tmp_path):
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools/beside.py').write_text('NAME = __name__')
    (tmp_path / 'tools/script.py').write_text("""
import sys
from mmcv.ops import nms
from beside import NAME
print(__name__, __file__, NAME, sys.argv, 'gcvit_mm' in sys.modules)
sys.exit(3)
""")
    done = run('-m', 'gcvit_mm', 'tools/script.py', '--a', 'b c', cwd=tmp_path)
    assert done.returncode == 3, done.stdout
    argv = "['tools/script.py', '--a', 'b c']"
    assert f'__main__ tools/script.py beside {argv} True\n' in done.stdout


@pytest.mark.parametrize('arguments', [[], ['gone.py']])
def test_a_script_that_is_not_there_is_refused(arguments, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['gcvit_mm', *arguments])
    with pytest.raises(UserError, match=r'(is missing|gone.py does not exist).+ SCRIPT \[ARGS'):
        main()
