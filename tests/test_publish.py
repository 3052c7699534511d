"""A published file has the weights and nothing of the training; its record says what they are."""

import hashlib
import json
import runpy
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from command_line import NANO, ROOT, fail, on, succeed
from mmengine.config import Config
from reference import write_official

from gcvit_mm import GCViT, __version__
from gcvit_mm.errors import UserError
from gcvit_mm.weights.files import read_checkpoint
from gcvit_mm.weights.load import load_pretrained


@pytest.fixture
def publish(monkeypatch, capsys):
    """Run the script in this process; give the record and what was printed."""
    script = runpy.run_path(str(ROOT / 'tools/publish_checkpoint.py'))

    def run(source: Path, target: Path, *options: object) -> tuple[dict, str]:
        arguments = ['publish_checkpoint.py', *map(str, (source, target, *options))]
        monkeypatch.setattr(sys, 'argv', arguments)
        script['main']()
        return json.loads(Path(f'{target}.json').read_text()), capsys.readouterr().out

    return run


@pytest.fixture
def run_of(tmp_path):
    """A work directory with a small checkpoint and logs of validations."""

    def make(name: str, *logs: list[dict], by_epoch: bool = True, **more) -> Path:
        torch.manual_seed(0)
        arch = dict(dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), mlp_ratio=1,
                    layer_scale=None, drop_path_rate=0.0)  # fmt: skip
        state = GCViT(arch).state_dict()
        meta = {'epoch': 2 if by_epoch else 0, 'iter': 4, 'cfg': "default_scope = 'mmseg'\n"}
        torch.save({'meta': meta, 'state_dict': state, 'optimizer': {}, **more}, tmp_path / name)
        for i, entries in enumerate(logs):
            log = tmp_path / f'2026010{i}_000000/vis_data/scalars.json'
            log.parent.mkdir(parents=True)
            log.write_text('\n'.join(map(json.dumps, entries)))
        return tmp_path / name

    return make


def steps(*numbers: int, **epoch: int) -> list[dict]:
    return [{'loss': 1.0, 'iter': i, 'step': i, **epoch} for i in numbers]


# --- The file ---------------------------------------------------------------------------------


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_a_published_file_reaches_in_a_test_what_its_record_says(
    suffix, trained, publish, tmp_path
):
    file = tmp_path / f'nano.{suffix}'
    record, _ = publish(trained.checkpoint, file)
    arguments = ['--work-dir', tmp_path / 'work', '--out', tmp_path / 'o', *on(trained.data)]
    succeed('test.py', NANO, file, *arguments)
    measured = json.loads((tmp_path / 'o.metrics.json').read_text())
    assert record['metrics'] == pytest.approx(measured)
    assert len(measured) == 12
    assert record['metrics_from'].startswith('validation during training, ')


@pytest.mark.parametrize('suffix', ['pth', 'pth.tar', 'safetensors'])
def test_the_file_holds_the_weights_and_plain_data_about_them_only(
    suffix, trained, publish, tmp_path
):
    file = tmp_path / f'nano.{suffix}'
    record, output = publish(trained.checkpoint, file)
    source, content = read_checkpoint(trained.checkpoint), read_checkpoint(file)
    assert content.keys() == {'meta', 'state_dict'}
    assert content['state_dict'].keys() == source['state_dict'].keys()
    for name, value in source['state_dict'].items():
        assert torch.equal(content['state_dict'][name], value)
    assert list(content['meta']['dataset_meta']['classes']) == ['disk', 'box', 'star']
    assert 'removed: message_hub, optimizer, param_schedulers' in output
    assert record['sha256'] in output
    if suffix != 'safetensors':
        torch.load(file, weights_only=True)  # without any type allowed in addition
        assert content['meta']['dataset_meta'] == source['meta']['dataset_meta']


def test_the_record_identifies_the_file_and_the_training(trained, publish, tmp_path):
    file = tmp_path / 'nano.safetensors'
    record, _ = publish(trained.checkpoint, file)
    content = file.read_bytes()
    assert record['file'] == 'nano.safetensors'
    assert (record['sha256'], record['size']) == (hashlib.sha256(content).hexdigest(), len(content))
    assert (record['task'], record['weights']) == ('detection', 'as trained')
    assert record['variant'] == 'a GC ViT of dim 32, depths (2, 2, 2, 2)'
    assert record['classes'] == ['disk', 'box', 'star']
    source = record['source']
    assert (source['file'], source['epoch'], source['iter']) == ('epoch_1.pth', 1, 2)
    assert record['published_with']['gcvit_mm'] == __version__
    assert record['published_with']['torch'] == version('torch')
    config = Config.fromstring(record['config'], file_format='.py')
    assert config.model.backbone.type == 'GCViT'
    again, _ = publish(trained.checkpoint, tmp_path / 'again.safetensors')
    assert again['sha256'] == record['sha256']


def test_a_published_detector_is_a_backbones_init_cfg(trained, publish, tmp_path):
    file = tmp_path / 'nano.safetensors'
    publish(trained.checkpoint, file)
    arch = Config.fromfile(ROOT / NANO).model.backbone.arch
    report = load_pretrained(GCViT(arch, window_size=7), str(file))
    assert (report.new, len(report.resized)) == ([], 8)
    assert {name.split('.')[0] for name in report.unused} == {'neck', 'rpn_head', 'roi_head'}


def test_a_published_file_is_no_training_to_resume(trained, publish, tmp_path):
    publish(trained.checkpoint, tmp_path / 'detector.pth')
    error = fail(
        'train.py', NANO, '--work-dir', tmp_path, '--resume', tmp_path / 'detector.pth',
        *on(trained.data),
    )  # fmt: skip
    assert 'detector.pth: it has weights only' in error and 'load_from=FILE' in error
    assert 'load_from=' in error


def test_weights_of_the_averaging_hook_are_published_as_such(run_of, publish, tmp_path):
    source = run_of('epoch_2.pth', ema_state_dict={'steps': torch.tensor(4)})
    record, output = publish(source, tmp_path / 'x.pth')
    assert record['weights'] == 'moving average (EMA)'
    assert 'moving average (EMA)' in output
    assert 'ema_state_dict' not in read_checkpoint(tmp_path / 'x.pth')


# --- Metrics ----------------------------------------------------------------------------------


def metrics_of(publish, source, *options):
    record, _ = publish(source, source.parent / 'published.pth', '--force', *options)
    return record['metrics']


def test_metrics_are_those_of_the_very_epoch_in_the_latest_run_that_has_it(run_of, publish):
    first = [*steps(1, 2, epoch=1), {'m': 0.1, 'step': 1}, *steps(3, 4, epoch=2),
             {'m': 0.2, 'step': 2}, {'m': 0.3, 'step': 3}, {'m': 0.4, 'step': 4}]  # fmt: skip
    resumed = [*steps(3, 4, epoch=2), {'m': 0.5, 'time': 3.0, 'data_time': 1.0, 'step': 2}]
    later = [*steps(5, 6, epoch=3), {'m': 0.6, 'step': 3}]
    source = run_of('epoch_2.pth', first, resumed, later)
    assert metrics_of(publish, source) == {'m': 0.5}
    best = source.rename(source.with_name('best_coco_bbox_mAP_epoch_2.pth'))
    assert metrics_of(publish, best) == {'m': 0.5}


def test_metrics_counted_in_iterations_are_not_taken_for_epochs(run_of, publish):
    log = [*steps(2), {'m': 0.1, 'step': 2}, *steps(4), {'m': 0.2, 'step': 4}]
    source = run_of('iter_4.pth', log, by_epoch=False)
    assert metrics_of(publish, source) == {'m': 0.2}
    assert metrics_of(publish, run_of('epoch_2.pth')) == {}


def test_a_log_that_was_cut_off_and_a_renamed_file_are_no_error(run_of, publish):
    source = run_of('epoch_2.pth', [*steps(4, epoch=2), {'m': 0.2, 'step': 2}])
    (log,) = source.parent.glob('*/vis_data/scalars.json')
    log.write_text(log.read_text() + '\n{"loss": 0.')
    assert metrics_of(publish, source) == {'m': 0.2}
    renamed = source.rename(source.with_name('final.pth'))
    record, output = publish(renamed, source.with_name('x.pth'))
    assert (record['metrics'], record['metrics_from']) == ({}, None)
    assert 'metrics: none found, pass --metrics FILE' in output


def test_given_metrics_take_the_place_of_logged_ones_and_must_be_metrics(run_of, publish, tmp_path):
    source = run_of('epoch_2.pth', [*steps(4, epoch=2), {'m': 0.2, 'step': 2}])
    file = tmp_path / 'test.metrics.json'
    file.write_text('{"mIoU": 47.5}')
    record, _ = publish(source, tmp_path / 'x.pth', '--metrics', file)
    assert (record['metrics'], record['metrics_from']) == ({'mIoU': 47.5}, file.name)
    assert record['task'] == 'segmentation'
    for content, message in (('{"m": 1', 'cannot be read'), ('{"m": "high"}', 'JSON object')):
        file.write_text(content)
        with pytest.raises(UserError, match=f'metrics .*test.metrics.json .*{message}'):
            publish(source, tmp_path / 'y.pth', '--metrics', file)
    with pytest.raises(UserError, match=r'absent\.json cannot be read'):
        publish(source, tmp_path / 'y.pth', '--metrics', tmp_path / 'absent.json')
    assert not list(tmp_path.glob('y.pth*'))


# --- What is refused --------------------------------------------------------------------------


def test_only_a_checkpoint_of_a_training_is_published_and_nothing_is_overwritten(
    run_of, publish, tmp_path
):
    source, target = run_of('epoch_2.pth'), tmp_path / 'x.pth'
    official = write_official(tmp_path / 'official.pth.tar', 'xxtiny')
    with pytest.raises(UserError, match=r'official.pth.tar is not a checkpoint of tools/train.py'):
        publish(official, target)
    run_of('foreign.pth', state_dict={'conv1.weight': torch.zeros(3)})
    with pytest.raises(UserError, match=r'foreign.pth: the file has no GC ViT'):
        publish(tmp_path / 'foreign.pth', target)
    assert not list(tmp_path.glob('x.pth*'))
    (tmp_path / 'x.pth.json').write_text('precious')
    with pytest.raises(UserError, match=r'x.pth.json exists: .*--force'):
        publish(source, target)
    publish(source, target, '--force')
    with pytest.raises(UserError, match=r'x.pth exists: .*--force'):
        publish(source, target)
    with pytest.raises(UserError, match='the source itself'):
        publish(source, source, '--force')


def test_a_config_in_a_file_is_not_run(run_of, publish, tmp_path):
    proof = tmp_path / 'proof'
    attack = f"default_scope = 'mmdet'\n__import__('os').system('touch {proof}')\n"
    source = run_of('epoch_2.pth', meta={'epoch': 2, 'iter': 4, 'cfg': attack})
    record, _ = publish(source, tmp_path / 'x.safetensors')
    assert (record['task'], record['config']) == ('detection', attack)
    assert not proof.exists()
