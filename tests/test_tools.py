"""Bad input ends in one line that says what to do; options and outputs do what is promised."""

import fcntl
import json
import os
import pty
import re
import runpy
import shutil
import struct
import sys
import termios
import threading
from pathlib import Path

import pytest
import torch
from command_line import NANO, ROOT, VAL_IMAGES, call, fail, log_of, on, succeed
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import BaseLoop
from pycocotools.coco import COCO
from reference import write_official

import gcvit_mm
from gcvit_mm.cli import parse_value
from gcvit_mm.engine.distributed import check_gpus
from gcvit_mm.engine.lr_scaling import scale_learning_rate
from gcvit_mm.engine.setup import prepare, unsaved_states, wrong_settings
from gcvit_mm.errors import UserError
from gcvit_mm.work_dir import check_untrained

TRAINING = 'annotations/instances_training.json'
VALIDATION = 'annotations/instances_validation.json'


@pytest.fixture
def data(tiny_shapes, tmp_path):
    """A copy of the data set, to be damaged."""
    return Path(shutil.copytree(tiny_shapes, tmp_path / 'my data'))


def train_fails(tmp_path, *arguments):
    """Give the error of a training that must write no checkpoint."""
    error = fail('train.py', NANO, '--work-dir', tmp_path / 'work', *arguments)
    assert not list(tmp_path.glob('work/**/*.pth'))
    assert not list(tmp_path.glob('work/last_checkpoint'))
    return error


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def cut(file):
    """Truncate a file to its first half."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return file


# --- Data -------------------------------------------------------------------------------------


def test_a_missing_data_folder_is_named_with_the_option_to_set(tmp_path):
    error = train_fails(tmp_path, *on(tmp_path / 'no such data'))
    assert f'data folder {tmp_path}/no such data' in error
    assert 'train_dataloader.dataset.data_root=' in error


def test_a_missing_image_folder_is_named(data, tmp_path):
    shutil.rmtree(data / 'images/validation')
    assert f'image folder {data}/images/validation' in train_fails(tmp_path, *on(data))


def test_missing_annotations_of_validation_are_noticed_before_training(data, tmp_path):
    (data / VALIDATION).unlink()
    error = train_fails(tmp_path, *on(data))
    assert f'annotation file {data}/{VALIDATION} (val_dataloader) does not exist' in error


def test_missing_annotations_of_the_evaluator_are_noticed_before_training(tiny_shapes, tmp_path):
    error = train_fails(tmp_path, *on(tiny_shapes, 'val_evaluator.ann_file=gone.json'))
    assert 'gone.json (val_evaluator) does not exist' in error
    assert 'val_evaluator.ann_file=' in error


def test_annotations_that_are_not_json_are_named(data, tmp_path):
    error = train_fails(tmp_path, *on(cut(data / TRAINING).parents[1]))
    assert f'annotation file {data}/{TRAINING} cannot be read as JSON' in error


@pytest.mark.parametrize('content', ['{"images": []}', '3'])
def test_annotations_that_are_not_of_coco_are_named(content, data, tmp_path):
    (data / TRAINING).write_text(content)
    error = train_fails(tmp_path, *on(data))
    assert f'annotation file {data}/{TRAINING} is not in COCO' in error
    assert 'categories' in error


def test_categories_that_are_not_the_classes_are_all_listed(data, tmp_path):
    def rename(content):
        content['categories'][0]['name'] = 'ball'
        content['categories'][2]['name'] = 'sun'

    edit(data / VALIDATION, rename)
    error = train_fails(tmp_path, *on(data))
    assert str(data / VALIDATION) in error
    assert 'lacks disk, star; the config lacks ball, sun' in error
    assert 'val_dataloader.dataset.metainfo.classes' in error


def test_heads_for_another_number_of_classes_are_named(tiny_shapes, tmp_path):
    option = 'model.roi_head.mask_head.num_classes=80'
    error = train_fails(tmp_path, *on(tiny_shapes, option))
    assert 'model.roi_head.mask_head.num_classes is 80' in error
    assert '3 classes (disk, box, star)' in error


# --- Images -----------------------------------------------------------------------------------


@pytest.mark.parametrize('workers', [0, 2])
def test_a_truncated_image_stops_the_run_with_its_name(workers, data, tmp_path):
    image = cut(data / 'images/training/000003.jpg')
    options = on(data, f'train_dataloader.num_workers={workers}')
    error = train_fails(tmp_path, *options)
    assert f'image {image} cannot be read' in error
    assert '--skip-bad-images' in error


def test_training_goes_on_without_bad_images_and_counts_them(data, tmp_path):
    bad = [cut(data / f'images/training/00000{i}.jpg') for i in (1, 2)]
    bad.append(cut(data / 'images/validation/000000.jpg'))
    options = on(data, 'train_dataloader.num_workers=2', 'val_dataloader.num_workers=1')
    arguments = (NANO, '--work-dir', tmp_path / 'work', '--skip-bad-images', '--resume', *options)
    output = succeed('train.py', *arguments)
    assert f'3 bad image(s) skipped, listed in {tmp_path}/work/bad_images.txt' in output
    listed = (tmp_path / 'work/bad_images.txt').read_text().splitlines()
    assert sorted(set(listed)) == sorted(map(str, bad))
    assert f'bad image {bad[0]} is skipped' in output
    # The same run is the one of `--resume` without anything to resume.
    assert f'nothing to resume in {tmp_path}/work: training starts from scratch' in output
    checkpoint = tmp_path / 'work/epoch_1.pth'
    assert checkpoint.exists()
    # The last lines say what to do next.
    assert f'last checkpoint: {checkpoint}\nevaluate: gcvit-mm test ' in output


def test_more_bad_images_than_allowed_end_the_training(data, tmp_path):
    for i in (1, 2):
        cut(data / f'images/training/00000{i}.jpg')
    options = '--skip-bad-images', '1', *on(data)
    error = train_fails(tmp_path, *options)
    assert '2 images cannot be read' in error and '--skip-bad-images allows 1' in error


def test_evaluation_names_a_bad_image_or_counts_it_as_blank(trained, data, tmp_path):
    image = cut(data / 'images/validation/000002.jpg')
    arguments = NANO, trained.checkpoint, '--work-dir', tmp_path / 'work'
    assert f'image {image} cannot be read' in fail('test.py', *arguments, *on(data))
    out = '--out', tmp_path / 'result', '--skip-bad-images'
    output = succeed('test.py', *arguments, *out, *on(data))
    assert '1 bad image(s) skipped' in output
    assert 'coco/bbox_mAP' in json.loads((tmp_path / 'result.metrics.json').read_text())


# --- Checkpoints ------------------------------------------------------------------------------


class Malicious:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture(scope='module')
def bad_checkpoints(trained, tmp_path_factory):
    """Checkpoints that fit no nano detector, by what is wrong with them."""
    folder = tmp_path_factory.mktemp('bad')
    shutil.copy(trained.checkpoint, folder / 'truncated.pth')
    cut(folder / 'truncated.pth')
    torch.save({'state_dict': {'fc.weight': torch.zeros(3)}}, folder / 'foreign.pth')
    content = torch.load(trained.checkpoint, weights_only=False)
    content['state_dict']['backbone.stem.conv.weight'] = torch.zeros(64, 3, 3, 3)
    torch.save(content, folder / 'variant.pth')
    attack = {'state_dict': {}, 'x': Malicious(f'touch "{folder}/proof"')}
    torch.save(attack, folder / 'attack.pth')
    return folder


MESSAGES = {
    'truncated.pth': 'truncated or damaged',
    'foreign.pth': 'does not fit the model',
    'variant.pth': r'does not fit the model: 1 of \d+ tensors.*backbone\.stem\.conv\.weight',
    'attack.pth': r'refused: it names posix\.system',
    'absent.pth': 'does not exist',
}


@pytest.mark.parametrize('name', MESSAGES)
def test_a_checkpoint_that_does_not_fit_is_not_evaluated(name, bad_checkpoints, trained, tmp_path):
    out = '--work-dir', tmp_path, '--out', tmp_path / 'result'
    error = fail('test.py', NANO, bad_checkpoints / name, *out, *on(trained.data))
    assert str(bad_checkpoints / name) in error
    assert re.search(MESSAGES[name], error)
    assert not list(tmp_path.glob('result*'))
    assert not (bad_checkpoints / 'proof').exists()


@pytest.mark.parametrize('name', ['truncated.pth', 'variant.pth'])
def test_a_checkpoint_that_does_not_fit_is_not_resumed(name, bad_checkpoints, trained, tmp_path):
    error = train_fails(tmp_path, '--resume', bad_checkpoints / name, *on(trained.data))
    assert str(bad_checkpoints / name) in error
    assert re.search(MESSAGES[name], error)


def test_pretraining_of_another_variant_is_refused(tiny_shapes, tmp_path):
    file = write_official(tmp_path / 'gcvit_1k_xxtiny.pth.tar', 'xxtiny')
    backbone = ('init_cfg.type=Pretrained', f'init_cfg.checkpoint={file}')
    options = (f'model.backbone.{option}' for option in backbone)
    error = train_fails(tmp_path, *on(tiny_shapes, *options))
    assert f'checkpoint {file}' in error
    assert 'GC ViT xxtiny' in error
    assert 'dim 32' in error


# --- Configs and options ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('modle.backbone.with_cp=True', "no section 'modle'; did you mean model?"),
        ('model.backbone.with_cp', '--cfg-options model.backbone.with_cp: pass KEY=VALUE'),
        ('model.backbone.out_indices=[0,1', 'out_indices=[0,1: brackets are not balanced'),
        ('train_cfg.max_epochs.x=1', '--cfg-options does not fit the config'),
        ('custom_hooks.5.type=EMAHook', '--cfg-options does not fit the config'),
        ("custom_hooks=[dict(type='EMAHook'", 'brackets are not balanced'),
        ('work_dir="a', 'quotes are not balanced'),
        ('model.backbone.init_cfg=dict(Pretrained)', 'Pretrained in dict(Pretrained) has no value'),
        (f'custom_hooks={"[" * 3000}{"]" * 3000}', 'maximum recursion depth'),
    ],
)
def test_an_option_that_does_not_fit_is_named(option, message, tmp_path):
    assert message in train_fails(tmp_path, '--cfg-options', option)


def test_values_of_options_keep_their_spaces():
    for text, value in {
        'a b': 'a b',
        '"a b"': 'a b',
        '/set (2)/x': '/set (2)/x',
        '[traffic light, box]': ['traffic light', 'box'],
        '[(1, 2), [x y, z]]': [(1, 2), ['x y', 'z']],
        '( 0.9 , 1 )': (0.9, 1),
        ' True': True,
        'None': None,
        'C:\\new': 'C:\\new',
        "[/john's/x, y]": ["/john's/x", 'y'],
        'epoch_{}.pth': 'epoch_{}.pth',
    }.items():
        assert parse_value(text) == value


def test_values_of_options_may_be_quoted_and_have_dictionaries():
    for text, value in {
        "'1'": '1',
        "['1', 2, \"3.5\", None, 'None']": ['1', 2, '3.5', None, 'None'],
        "'a, b'": 'a, b',
        "['a, b', c]": ['a, b', 'c'],
        "'1','2'": ['1', '2'],
        "[dict(type='EMAHook', momentum=2e-4)]": [dict(type='EMAHook', momentum=2e-4)],
        "{'type':'soft_nms','iou_threshold':0.5}": dict(type='soft_nms', iou_threshold=0.5),
        "dict(a=dict(b=[1, '2', {'c': (1,)}]), d='x=y')": dict(
            a=dict(b=[1, '2', dict(c=(1,))]), d='x=y'
        ),
        'dict(a=1),dict(a=2)': [dict(a=1), dict(a=2)],
        "{1: 'a', 'b': True}": {1: 'a', 'b': True},
        '[]': [],
        '()': (),
        '{}': {},
        'dict()': {},
        "''": '',
    }.items():
        assert parse_value(text) == value
        assert type(parse_value(text)) is type(value)


@pytest.fixture
def train_here(tiny_shapes, tmp_path, monkeypatch):
    """Start a training in this process, which is fast."""
    script = runpy.run_path(str(ROOT / 'tools/train.py'))
    monkeypatch.chdir(ROOT)

    def run(*options: str) -> None:
        arguments = ['train.py', NANO, '--work-dir', tmp_path / 'work']
        monkeypatch.setattr(sys, 'argv', [str(x) for x in (*arguments, *on(tiny_shapes, *options))])
        script['main']()

    return run


@pytest.mark.parametrize(
    ('option', 'fact'),
    [
        ('randomness.seed=abc', 'randomness.seed=abc: pass an integer'),
        ('log_level=LOUD', 'log_level=LOUD: choose one of'),
        ('optim_wrapper.optimizer.type=AdamX', 'optim_wrapper.optimizer.type=AdamX is not'),
        ('train_cfg=None', 'train_cfg'),
        ('train_cfg.max_epochs=0', 'train_cfg.max_epochs=0: pass an integer from 1'),
        ('train_cfg.max_epochs=1.5', 'max_epochs'),
        ('train_cfg.val_interval=0', 'train_cfg.val_interval=0: pass an integer from 1'),
        ('train_cfg.max_epochs=-1', 'train_cfg.max_epochs=-1: pass an integer from 1'),
        ('train_cfg.max_epochs=x', 'train_cfg.max_epochs=x: pass an integer from 1'),
        ('randomness.seed=-1', 'randomness.seed=-1: pass an integer'),
        (f'randomness.seed={2**40}', f'randomness.seed={2**40}: pass an integer'),
        ('train_dataloader.batch_size=0', 'train_dataloader.batch_size=0'),
        ('train_dataloader.num_workers=-1', 'train_dataloader.num_workers=-1'),
        ('default_hooks.checkpoint.on_failure=go', "on_failure=go: pass 'stop' or 'continue'"),
        ('default_hooks.non_finite.at_limit=go', 'at_limit=go'),
        ('model.test_cfg.rcnn.nms=5', 'model.test_cfg: nms=5: pass a dictionary'),
        ('model.test_cfg.rpn.nms_pre=x', "model.test_cfg: nms_pre='x': pass a number"),
        ('model.train_cfg.rcnn.sampler.num=x', "model.train_cfg: num='x': pass a number"),
        ('default_hooks.checkpoint.intervall=2', 'intervall'),
        ('default_hooks.checkpoint.max_keep_ckpts=few', 'max_keep_ckpts=few: pass an integer'),
        ('default_hooks.preemption.exit_status=256', 'exit_status=256: pass an integer from 0'),
        ('train_dataloader.dataset=None', 'as its dataset'),
        ('train_dataloader=abc', "'abc' as its dataset"),
        ('optim_wrapper.optimizer.rate=1', 'rate'),
        ('train_dataloader.size=1', 'size'),
        ('param_scheduler.1.T_max=abc', 'cannot be set up'),
        ('custom_hooks=[EMAHook]', 'cannot be set up'),
        ("custom_hooks=[dict(type='NoHook')]", 'NoHook is not in the mmdet::hook registry'),
        ('default_hooks.checkpoint.save_best=mAP', 'choose one of coco/bbox_mAP'),
        ('val_evaluator.metric=boxes', 'boxes'),
        ('val_evaluator.metric_items=[AP]', 'metric_items: AP: choose from mAP'),
        ('model.test_cfg.rcnn.nms.type=nms0', "name 'nms0' is not defined"),
        ('model.data_preprocessor.pad_size_divisor=0', 'ZeroDivisionError'),
        ('model.train_cfg.rcnn.assigner.pos_iou_thr=x', 'in assign_wrt_overlaps of'),
        ('optim_wrapper.clip_grad.max_norm=x', "could not convert string to float: 'x'"),
    ],
)
def test_a_setting_with_a_wrong_value_is_one_line_before_the_first_step(
    option, fact, train_here, tmp_path
):
    with pytest.raises(UserError) as error:
        train_here(option)
    assert fact in str(error.value)
    assert not [*tmp_path.rglob('*.pth')]


def test_a_wrong_setting_of_a_test_is_one_line_at_its_first_image(trained):
    error = fail('test.py', NANO, trained.checkpoint,
                 *on(trained.data, 'model.test_cfg.rcnn.nms.type=nms0'))  # fmt: skip
    assert "name 'nms0' is not defined" in error


def test_a_type_whose_state_is_not_saved_is_named_before_the_first_step(train_here, tmp_path):
    size = "dict(type='BatchSyncRandomResize', random_size_range=(64, 64))"
    train_here(
        f'model.data_preprocessor.batch_augments=[{size}]', 'default_hooks.logger.interval=1'
    )
    before, _ = log_of(tmp_path / 'work').split('Epoch(train) [1][1/2]')
    assert 'WARNING - BatchSyncRandomResize: checkpoints do not have' in before
    pipeline = [dict(type='CachedMosaic'), dict(type='mmdet.CachedMixUp'), dict(type='Resize')]
    cfg = Config(dict(train_dataloader=dict(dataset=dict(pipeline=pipeline))))
    (warning,) = unsaved_states(cfg)
    assert warning.startswith('CachedMixUp, CachedMosaic: ')


def test_errors_after_the_first_step_keep_their_traceback():
    class Loop(BaseLoop):
        def __init__(self, steps: int) -> None:
            self.steps = steps

        def run(self) -> None:
            raise TypeError('of a step')

    cfg = Config(filename=None)
    with pytest.raises(TypeError, match='of a step'), wrong_settings(cfg):
        Loop(1).run()
    with pytest.raises(UserError, match='of a step'), wrong_settings(cfg):
        Loop(0).run()
    with pytest.raises(UserError, match='TypeError: of the config'), wrong_settings(cfg):
        raise TypeError('of the config')


def test_a_second_start_overwrites_no_checkpoint(trained, tmp_path, monkeypatch):
    work_dir = Path(shutil.copytree(trained.work_dir, tmp_path / 'work'))
    script = runpy.run_path(str(ROOT / 'tools/train.py'))
    monkeypatch.chdir(ROOT)
    arguments = ['train.py', NANO, '--work-dir', work_dir, *on(trained.data)]
    monkeypatch.setattr(sys, 'argv', list(map(str, arguments)))
    with pytest.raises(UserError) as error:
        script['main']()
    message = str(error.value)
    assert f'{work_dir} has checkpoints' in message
    assert '--resume' in message and '--work-dir' in message
    # A training that left none may start again.
    for path in work_dir.glob('*'):
        if path.name == 'last_checkpoint' or path.suffix == '.pth':
            path.unlink()
    check_untrained(Config(dict(work_dir=str(work_dir))))
    for name in ('iter_3.pth', 'best_coco_bbox_mAP_epoch_2.pth', 'last_checkpoint'):
        (work_dir / name).touch()
        with pytest.raises(UserError, match=name):
            check_untrained(Config(dict(work_dir=str(work_dir))))
        (work_dir / name).unlink()
    (work_dir / 'imagenet.pth').touch()  # weights to start from
    check_untrained(Config(dict(work_dir=str(work_dir))))


@pytest.mark.parametrize(
    ('transform', 'polygons', 'cure'),
    [
        ('Mosaic', False, 'CachedMosaic'),
        ('mmdet.MixUp', False, 'CachedMixUp'),
        ('RandomAffine', True, 'with_mask=False'),
        ('RandomShift', False, 'with_mask=False'),
        ('RandomCenterCropPad', False, 'with_mask=False'),
        ('Expand', True, 'poly2mask=True'),
        ('RandomErasing', True, 'poly2mask=True'),
        ('Expand', False, None),
        ('CachedMosaic', True, None),
        ('RandomCrop', True, None),
    ],
)
def test_transforms_that_leave_masks_behind_are_refused(transform, polygons, cure):
    load = dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=not polygons)
    inner = dict(type='CocoDataset', pipeline=[load])
    mixed = dict(type='MultiImageMixDataset', dataset=inner, pipeline=[dict(type=transform)])
    for dataset in (mixed, dict(pipeline=[load, dict(transforms=[[dict(type=transform)]])])):
        cfg = Config(dict(custom_hooks=[], launcher='none', train_dataloader=dict(dataset=dataset)))
        if cure is None:
            prepare(cfg)
            continue
        with pytest.raises(UserError, match=f'{transform.split(".")[-1]} cannot.*{cure}'):
            prepare(cfg)
        load['with_mask'] = False
        prepare(
            Config(dict(custom_hooks=[], launcher='none', train_dataloader=dict(dataset=dataset)))
        )
        load['with_mask'] = True


def test_a_wrong_variant_is_answered_with_the_choices(tiny_shapes, tmp_path):
    error = train_fails(tmp_path, *on(tiny_shapes, 'model.backbone.arch=tinyy'))
    assert 'tinyy' in error
    for arch in gcvit_mm.ARCHS:
        assert arch in error


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'does not exist'),
        ('model = dict(\n', 'SyntaxError'),
        ("_base_ = './absent.py'\n", 'absent.py'),
        ("_base_ = 'mmdet::_base_/absent.py'\n", 'absent.py'),
        ('x = y\n', 'NameError'),
    ],
)
def test_a_config_that_cannot_be_read_is_named(content, message, tmp_path):
    config = tmp_path / 'config.py'
    if content:
        config.write_text(content)
    error = fail('train.py', config, '--work-dir', tmp_path / 'work')
    assert f'config {config} ' in error
    assert message in error
    assert not (tmp_path / 'work').exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_mixed_precision_is_refused_without_a_gpu(tiny_shapes, tmp_path):
    assert '--amp needs a GPU' in train_fails(tmp_path, '--amp', *on(tiny_shapes))


def test_more_processes_than_gpus_are_refused():
    for processes, gpus in ((1, 1), (2, 8), (4, 0)):
        check_gpus(processes, gpus)
    with pytest.raises(UserError, match=r'4 processes.*2 GPU\(s\): pass 2 to tools/dist_train\.sh'):
        check_gpus(4, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
def test_more_processes_than_gpus_are_refused_before_they_start(tiny_shapes, tmp_path):
    gpus = torch.cuda.device_count()
    error = fail('dist_train.sh', NANO, gpus + 1, '--work-dir', tmp_path, *on(tiny_shapes))
    assert f'has {gpus} GPU(s)' in error


# --- What runs say and write ------------------------------------------------------------------


def test_the_log_states_what_runs_and_holds_plain_lines(trained):
    log = log_of(trained.work_dir)
    for line in (
        r'device: .+, 1 process\(es\)',
        r'mmcv ops: \S.+',
        r'attention: sdpa',
        r'effective batch: 4 images \(4 per process x 1 process\(es\) x 1 accumulated\)',
        r'learning rate: 0\.001, not scaled: the recipe is for 8 images; .*',
        r'precision: float32',
        r'parameters: ([\d,]+) trainable of \1',
        rf'checkpoints and logs: {trained.work_dir}',
    ):
        assert re.search(rf'This run:(?:\n    .+)*\n    {line}\n', log), line
    count = int(re.search(r'parameters: ([\d,]+)', log)[1].replace(',', ''))
    state = torch.load(trained.checkpoint, weights_only=False)['state_dict']
    buffers = ('running_mean', 'running_var', 'num_batches_tracked')
    assert count == sum(v.numel() for k, v in state.items() if not k.endswith(buffers))
    assert not re.search(r'[\r\x1b]', log)
    # Without a terminal there is no bar, and no line of a lower level than in the file.
    assert not re.search(r'\r|\x1b|it/s| - DEBUG - ', trained.output)


def test_the_log_states_the_share_of_time_spent_waiting_for_data(trained):
    log = log_of(trained.work_dir)
    lines = re.findall(r'time: (\S+)  data_time: (\S+) .* data_share: (\S+)', log)
    assert len(lines) == 2
    for line in lines:
        time, waited, share = (float(figure) for figure in line)
        assert share == pytest.approx(waited / time, abs=1e-3)
    total = float(re.search(r'Waiting for data took (\S+)% of the training time', log)[1]) / 100
    assert 0 < total == pytest.approx(share, abs=1e-3)  # the last line's is that of both


def in_terminal(*command):
    """Run a script with stdout and stderr in a terminal; give its status and what it showed."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('4H', 24, 100, 0, 0))
    shown = []

    def read():
        while True:
            try:
                shown.append(os.read(master, 65536))
            except OSError:  # the terminal has been closed on the other side
                return

    reader = threading.Thread(target=read)
    reader.start()
    status = call(*command, stdout=slave, stderr=slave).returncode
    os.close(slave)
    reader.join()
    os.close(master)
    return status, b''.join(shown).decode()


def screen(shown):
    """The lines that a terminal is left with, where returns overwrite what stood there."""
    lines = []
    for line in shown.split('\r\n'):
        cells = []
        for part in re.sub(r'\x1b\[[\d;]*\w', '', line).split('\r'):
            cells[: len(part)] = part
        lines.append(''.join(cells).rstrip())
    return [line for line in lines if line]


def test_a_terminal_shows_a_progress_bar_above_which_lines_are_printed(tiny_shapes, tmp_path):
    arguments = NANO, '--work-dir', tmp_path, *on(tiny_shapes)
    status, shown = in_terminal('train.py', *arguments, 'default_hooks.logger.interval=1')
    assert status == 0
    assert re.search(r'train:  50%.*1/2', shown)
    assert re.search(r'val: 100%.*1/1', shown)
    for line in screen(shown):
        assert 'it/s]' not in line, line
        assert ' - DEBUG - ' not in line, line
    log = log_of(tmp_path)
    assert 'Epoch(train)' in log
    assert not re.search(r'[\r\x1b]|it/s', log)


def test_an_error_in_a_terminal_stands_on_a_line_of_its_own(data, tmp_path):
    cut(data / 'images/training/000003.jpg')
    in_order = ('train_dataloader.batch_size=1', 'train_dataloader.sampler.shuffle=False')
    status, shown = in_terminal('train.py', NANO, '--work-dir', tmp_path, *on(data, *in_order))
    assert status == 1
    assert re.search(r'train:  \d\d%.*[123]/8', shown)  # not each step is drawn
    assert screen(shown)[-1].startswith('error: image '), shown[-500:]


def test_evaluation_needs_no_pretraining_and_writes_coco_files_and_pictures(trained, tmp_path):
    # Keys that are new, in a section that the config has.
    init_cfg = ('type=Pretrained', 'checkpoint=checkpoints/absent.pth.tar')
    pretraining = (f'model.backbone.init_cfg.{option}' for option in init_cfg)
    output = succeed(
        'test.py', NANO, trained.checkpoint, '--work-dir', tmp_path / 'work',
        '--out', tmp_path / 'out put' / 'result', '--show-dir', tmp_path / 'pictures',
        *on(trained.data, *pretraining),
    )  # fmt: skip
    metrics = json.loads((tmp_path / 'out put/result.metrics.json').read_text())
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= metrics.keys()
    truth = COCO(trained.data / VALIDATION)
    for kind in ('bbox', 'segm'):
        found = truth.loadRes(str(tmp_path / f'out put/result.{kind}.json'))
        assert found.getAnnIds()
        assert set(found.getCatIds()) == {1, 2, 3}
    assert len(list((tmp_path / 'pictures').iterdir())) == VAL_IMAGES
    assert re.search(r'This run:\n    device: ', output)


def test_evaluation_in_mixed_precision_finds_nearly_the_same(trained, tmp_path):
    best = {}
    for name, options in {'float32': [], 'bfloat16': ['--amp']}.items():
        output = succeed(
            'test.py', NANO, trained.checkpoint, '--work-dir', tmp_path, *options,
            '--out', tmp_path / name, *on(trained.data),
        )  # fmt: skip
        assert ('Features are computed in bfloat16' in output) == (name == 'bfloat16')
        found = json.loads((tmp_path / f'{name}.bbox.json').read_text())
        best[name] = {}
        for each in found:
            scores = best[name].setdefault(each['image_id'], [])
            scores.append(each['score'])
    assert best['float32'] != best['bfloat16']  # something was computed in another precision
    for image, scores in best['float32'].items():
        assert max(best['bfloat16'][image]) == pytest.approx(max(scores), abs=0.02)


# --- The recipe -------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['nano_shapes', 'tiny_coco'])
def test_norms_and_bias_tables_are_spared_weight_decay_and_nothing_else_is(name):
    cfg = Config.fromfile(ROOT / f'configs/mask_rcnn_gcvit_{name}.py')
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).param_groups
    decay = {id(p): group['weight_decay'] for group in groups for p in group['params']}
    norms = {
        id(parameter)
        for module in model.modules()
        if 'Norm' in type(module).__name__
        for parameter in module.parameters()
    }
    seen = set()
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kind = 'norm' if id(parameter) in norms else key.rsplit('.', 1)[-1]
        spared = kind in ('norm', 'relative_position_bias_table')
        assert decay[id(parameter)] == (0 if spared else 0.05), key
        seen.add(kind)
    assert {'norm', 'relative_position_bias_table', 'weight', 'bias'} <= seen


# --- The batch --------------------------------------------------------------------------------


def test_the_learning_rate_is_scaled_to_the_batch_and_the_rule_is_named(tiny_shapes, tmp_path):
    # The recipe is for 8 images, and these steps have 2.
    small = 'train_dataloader.batch_size=2', 'default_hooks.logger.interval=1'
    options = on(tiny_shapes, *small, 'param_scheduler=None')
    plain = succeed('train.py', NANO, '--work-dir', tmp_path / 'plain', *options)
    assert (
        'learning rate: 0.001, not scaled: the recipe is for 8 images; --auto-scale-lr would '
        'multiply it by 0.5 (square root, as for AdamW)'
    ) in plain
    scaled = succeed('train.py', NANO, '--work-dir', tmp_path, '--auto-scale-lr', *options)
    assert (
        "learning rate: 0.0005, 0.5 (square root, as for AdamW) times the recipe's: the recipe is "
        'for 8 images'
    ) in scaled
    assert 'lr: 5.0000e-04' in scaled


def test_the_learning_rate_of_sgd_is_scaled_linearly():
    cfg = Config(
        dict(
            train_dataloader=dict(batch_size=2),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1), accumulative_counts=2),
            auto_scale_lr=dict(base_batch_size=16),
        )
    )
    scale_learning_rate(cfg)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(0.1 * 4 / 16)
