"""What trackers are given is what ``scalars.json`` has, in one run however often resumed."""

import json
import sys

import command_line
import pytest
from command_line import NANO, fail, on, succeed
from mlflow import MlflowClient
from mmengine.config import Config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gcvit_mm.engine.trackers import TensorboardTracker, TrackHook
from gcvit_mm.errors import UserError

EACH_STEP = 'default_hooks.logger.interval=1'


def logged(work_dir):
    """What mmengine's own file has: (name, iteration) -> value."""
    values, iteration = {}, 0
    for file in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            row.pop('step')
            times = '' if 'iter' in row else 'val_'
            iteration = row.get('iter', iteration)
            for name, value in row.items():
                key = times + name if name in ('time', 'data_time') else name
                values[key, iteration] = value
    return values


@pytest.fixture(scope='module')
def tracked(tiny_shapes, tmp_path_factory):
    """A training of one epoch that was gone on with for another."""
    work_dir = tmp_path_factory.mktemp('tracked') / 'work'
    track = '--track', 'tensorboard', '--track', 'mlflow'
    arguments = NANO, '--work-dir', work_dir, *track
    succeed('train.py', *arguments, *on(tiny_shapes, EACH_STEP))
    more = on(tiny_shapes, EACH_STEP, 'train_cfg.max_epochs=2')
    succeed('train.py', *arguments, '--resume', *more)
    return work_dir


def test_tensorboard_has_the_curves_and_the_config_in_one_run(tracked):
    (run,) = (tracked / 'tensorboard').iterdir()
    events = EventAccumulator(str(run)).Reload()
    expected = logged(tracked)
    assert {'loss', 'lr', 'coco/bbox_mAP', 'val_time'} <= {name for name, _ in expected}
    assert max(iteration for _, iteration in expected) == 4
    values = {
        (name, event.step): event.value
        for name in events.Tags()['scalars']
        for event in events.Scalars(name)
    }
    assert values == {key: pytest.approx(value, rel=1e-5) for key, value in expected.items()}
    assert sum(len(events.Scalars(name)) for name in events.Tags()['scalars']) == len(values)
    for event in events.Tensors('config/text_summary'):  # one of each start
        assert b'GCViT' in event.tensor_proto.string_val[0]


def test_mlflow_has_the_curves_and_the_settings_in_one_run(tracked, monkeypatch):
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    client = MlflowClient((tracked.parent / 'mlruns').as_uri())
    experiment = client.get_experiment_by_name('gcvit_mm')
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == 'mask_rcnn_gcvit_nano_shapes'
    assert run.info.status == 'FINISHED'
    metrics = [
        ((name, metric.step), metric.value)
        for name in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, name)
    ]
    expected = logged(tracked)
    assert len(metrics) == len(expected)
    assert dict(metrics) == {key: pytest.approx(value) for key, value in expected.items()}
    assert run.data.params['optim_wrapper.optimizer.lr'] == '0.001'
    assert run.data.params['model.backbone.window_size'] == '8'
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ['config.py']


def test_the_config_beside_the_checkpoints_tracks_nothing(tracked):
    config = Config.fromfile(tracked / 'mask_rcnn_gcvit_nano_shapes.py')
    assert [backend.type for backend in config.visualizer.vis_backends] == ['LocalVisBackend']
    assert 'TrackHook' not in config.pretty_text


def test_tensorboard_hides_what_is_trained_again(tmp_path):
    run = None
    for steps in (range(1, 11), range(6, 9)):
        first = steps[0]
        tracker = TensorboardTracker(str(tmp_path), 'name', run, lambda first=first: first - 1)
        for step in steps:
            tracker.add_scalars({'loss': first + step, 'iter': step}, step)
        tracker.close()
        run = tracker.run
    events = EventAccumulator(str(tmp_path / 'tensorboard' / run)).Reload()
    losses = [(event.step, event.value) for event in events.Scalars('loss')]
    assert losses == [(step, 1 + step) for step in range(1, 6)] + [(6, 12), (7, 13), (8, 14)]


@pytest.mark.parametrize('name', ['tensorboard', 'wandb', 'mlflow'])
def test_a_tracker_that_is_not_installed_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"{name}: pip install 'gcvit_mm\[track\]'"):
        TrackHook([name], resume=False)


@pytest.mark.slow
def test_wandb_without_a_network_keeps_the_run_in_the_work_folder(
    tiny_shapes, tmp_path, monkeypatch
):
    monkeypatch.setitem(command_line.ENVIRONMENT, 'WANDB_MODE', 'offline')
    arguments = NANO, '--work-dir', tmp_path, '--track', 'wandb'
    succeed('train.py', *arguments, *on(tiny_shapes, EACH_STEP))
    succeed(
        'train.py', *arguments, '--resume', *on(tiny_shapes, EACH_STEP, 'train_cfg.max_epochs=2')
    )
    run = json.loads((tmp_path / 'trackers.json').read_text())['wandb']
    files = sorted(tmp_path.glob('wandb/offline-run-*/run-*.wandb'))
    assert [file.name for file in files] == [f'run-{run}.wandb'] * 2
    for file in files:
        content = file.read_bytes()
        for name in (b'coco/bbox_mAP', b'loss_rpn_cls', b'mask_rcnn_gcvit_nano_shapes'):
            assert name in content


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'variables', 'message'),
    [
        ('wandb', {}, 'WANDB_MODE=offline'),
        (
            'mlflow',
            {
                'MLFLOW_TRACKING_URI': 'http://127.0.0.1:9',
                'MLFLOW_HTTP_REQUEST_MAX_RETRIES': '0',
            },
            'http://127.0.0.1:9 refuses the run',
        ),
    ],
)
def test_a_tracker_that_takes_no_runs_ends_the_training_before_its_first_step(
    name, variables, message, tiny_shapes, tmp_path, monkeypatch
):
    for variable in ('WANDB_MODE', 'WANDB_API_KEY'):
        monkeypatch.delitem(command_line.ENVIRONMENT, variable, raising=False)
    for variable, value in {'HOME': str(tmp_path), **variables}.items():
        monkeypatch.setitem(command_line.ENVIRONMENT, variable, value)
    work_dir = tmp_path / 'work'
    arguments = NANO, '--work-dir', work_dir, '--track', name
    assert message in fail('train.py', *arguments, *on(tiny_shapes))
    assert not list(work_dir.glob('*.pth'))
