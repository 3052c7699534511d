"""Trainings that are killed, stopped or out of room, and go on as if nothing had been."""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import ENVIRONMENT, NANO, ROOT, TRAIN_IMAGES, call, fail, on, succeed
from mmengine.config import Config

from gcvit_mm.datasets.shapes import make_shapes
from gcvit_mm.engine.hooks.safe_checkpoint_hook import WholeFileBackend
from gcvit_mm.errors import UserError
from gcvit_mm.weights.files import read_checkpoint, verify_checkpoint
from gcvit_mm.work_dir import find_resumable, read_run

SEGMENTER = 'configs/upernet_gcvit_nano_shapes.py'
NO_EVALUATION = ['val_cfg=None', 'val_dataloader=None', 'val_evaluator=None']


def detector(folder: Path, data: Path, *options: str) -> list[object]:
    """Two epochs of eight steps each: a moving average, accumulation, workers, aspect ratios."""
    config = folder / 'detector.py'
    config.write_text(
        f"_base_ = '{ROOT / NANO}'\n"
        "custom_hooks = [dict(type='EMAHook', momentum=0.1)]\n"
        'optim_wrapper = dict(accumulative_counts=2)\n'
    )
    return [
        config,
        *on(
            data,
            'train_cfg.max_epochs=2',
            'train_dataloader.batch_size=1',
            'train_dataloader.num_workers=2',
            'train_dataloader.batch_sampler.type=AspectRatioBatchSampler',
            'default_hooks.logger.interval=1',
            *NO_EVALUATION,
            *options,
        ),
    ]


def segmenter(data: Path, steps: int) -> list[object]:
    """Steps of two images, with a checkpoint after every third."""
    return [
        SEGMENTER,
        '--cfg-options',
        f'train_dataloader.dataset.data_root={data}',
        'train_dataloader.batch_size=2',
        'train_dataloader.num_workers=1',
        f'train_cfg.max_iters={steps}',
        'default_hooks.checkpoint.interval=3',
        'default_hooks.logger.interval=1',
        *NO_EVALUATION,
    ]


def start(work_dir: Path, arguments: list[object]) -> subprocess.Popen:
    command = [sys.executable, 'tools/train.py', *arguments, '--work-dir', work_dir, '--resume']
    return subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def wait_for(process: subprocess.Popen, text: str) -> str:
    """Read what a process writes until ``text`` comes."""
    output = ''
    for line in process.stdout:
        output += line
        if text in line:
            return output
    raise AssertionError(f'{text!r} never came:\n{output}')


def assert_identical(file: Path, other: Path) -> None:
    """Compare weights, their moving average, and the state of optimizer and schedules."""
    first, second = read_checkpoint(file), read_checkpoint(other)
    for part in ('state_dict', 'optimizer', 'param_schedulers', 'ema_state_dict'):
        assert_equal(first.get(part), second.get(part), part)


def assert_equal(first: object, second: object, name: str) -> None:
    if isinstance(first, dict):
        assert first.keys() == second.keys(), name
        for key in first:
            assert_equal(first[key], second[key], f'{name}.{key}')
    elif isinstance(first, list):
        assert len(first) == len(second), name
        for i, pair in enumerate(zip(first, second, strict=True)):
            assert_equal(*pair, f'{name}[{i}]')
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), name
    else:
        assert first == second, name


# --- Signals and kills ------------------------------------------------------------------------


@pytest.mark.parametrize(
    'method', ['fork', *(pytest.param(m, marks=pytest.mark.slow) for m in ('forkserver', 'spawn'))]
)
def test_a_training_stopped_in_an_epoch_by_sigterm_goes_on_to_the_same_weights(
    method, tiny_shapes, tmp_path
):
    arguments = detector(tmp_path, tiny_shapes)
    succeed('train.py', *arguments, '--work-dir', tmp_path / 'whole')
    process = start(tmp_path / 'work', [*arguments, f'env_cfg.mp_cfg.mp_start_method={method}'])
    wait_for(process, '[1][3/8]')
    os.killpg(process.pid, signal.SIGTERM)  # as clusters do: workers get it too
    output = process.stdout.read()
    assert process.wait(60) == 0, output
    (saved,) = (tmp_path / 'work').glob('*.pth')
    step = int(saved.stem.removeprefix('iter_'))
    assert 3 <= step < TRAIN_IMAGES
    assert step % 2 == 0  # what was accumulated is not in a checkpoint
    assert f'SIGTERM: training ends after iteration {step}, saved in' in output
    assert (tmp_path / 'work/last_checkpoint').read_text() == saved.name

    # Another number of workers, and another batch of random numbers, change nothing.
    output = succeed(
        'train.py',
        *detector(tmp_path, tiny_shapes, 'train_dataloader.num_workers=1'),
        '--work-dir',
        tmp_path / 'work',
        '--resume',
    )
    assert f'[1][{step + 1}/8]' in output
    assert f'[1][{step}/8]' not in output
    whole = tmp_path / 'whole/epoch_2.pth'
    assert 'ema_state_dict' in read_checkpoint(whole)
    assert_identical(tmp_path / 'work/epoch_2.pth', whole)


@pytest.mark.slow
@pytest.mark.parametrize('method', ['fork', 'forkserver', 'spawn'])
def test_signals_while_workers_start_end_the_training_after_a_step(method, tiny_shapes, tmp_path):
    arguments = [*detector(tmp_path, tiny_shapes), f'env_cfg.mp_cfg.mp_start_method={method}']
    process = start(tmp_path / 'work', arguments)
    wait_for(process, 'Checkpoints will be saved to')
    for _ in range(8):
        time.sleep(0.3)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGUSR1)
            os.killpg(process.pid, signal.SIGTERM)
    output = process.stdout.read()
    assert process.wait(60) == 0, output
    assert 'Traceback' not in output
    # Later signals interrupt the first steps.
    assert Path(find_resumable(tmp_path / 'work')[0]).name in (
        'iter_0.pth',
        'iter_1.pth',
        'iter_2.pth',
    )


@pytest.mark.slow
def test_thirty_kills_at_random_moments_leave_the_weights_as_they_would_be(tiny_shapes, tmp_path):
    kills, seed = 30, random.randrange(2**32)
    moment = random.Random(seed)
    steps = 400
    succeed('train.py', *segmenter(tiny_shapes, steps), '--work-dir', tmp_path / 'whole')
    in_a_save = 0
    for kill in range(kills):
        process = start(tmp_path / 'work', segmenter(tiny_shapes, steps))
        for _ in range(moment.randrange(1, 12)):
            wait_for(process, 'Iter(train)')
        # Some kills at any moment, others as a checkpoint is being written.
        if kill % 2:
            wait_for(process, 'Saving checkpoint')
        time.sleep(moment.uniform(0, 0.1))
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL, f'seed {seed}: too late for kill {kill}'
        in_a_save += bool(list((tmp_path / 'work').glob('*.tmp')))
    output = succeed(
        'train.py', *segmenter(tiny_shapes, steps), '--work-dir', tmp_path / 'work', '--resume'
    )
    print(f'seed {seed}: {in_a_save} kills in a save; at last, {output.splitlines()[0]}')
    assert not list((tmp_path / 'work').glob('*.tmp'))
    last = f'iter_{steps}.pth'
    assert_identical(tmp_path / 'work' / last, tmp_path / 'whole' / last)


# --- Damage -----------------------------------------------------------------------------------


@pytest.fixture
def two_checkpoints(trained, tmp_path) -> tuple[Path, Path]:
    """An older and a newer checkpoint in a work directory."""
    older, newer = tmp_path / 'work/epoch_1.pth', tmp_path / 'work/epoch_2.pth'
    older.parent.mkdir()
    shutil.copy(trained.checkpoint, older)
    content = read_checkpoint(trained.checkpoint)
    content['meta'].update(iter=content['meta']['iter'] + 2, epoch=2)
    torch.save(content, newer)
    return older, newer


def test_the_newest_whole_checkpoint_is_found(two_checkpoints):
    older, newer = two_checkpoints
    assert find_resumable(older.parent) == (str(newer), [])
    os.utime(older, (2e9, 2e9))  # copying may set any time
    assert find_resumable(older.parent) == (str(newer), [])


@pytest.mark.parametrize('tenths', range(10))
def test_a_truncated_checkpoint_is_passed_over_with_the_reason(tenths, two_checkpoints):
    older, newer = two_checkpoints
    content = newer.read_bytes()
    newer.write_bytes(content[: len(content) * tenths // 10])
    found, (reason,) = find_resumable(older.parent)
    assert found == str(older)
    assert f'{newer} cannot be read, it is truncated or damaged' in reason


def test_a_checkpoint_cut_by_its_last_byte_is_passed_over(two_checkpoints):
    older, newer = two_checkpoints
    newer.write_bytes(newer.read_bytes()[:-1])
    found, reasons = find_resumable(older.parent)
    assert (found, len(reasons)) == (str(older), 1)


@pytest.mark.slow
def test_one_flipped_bit_anywhere_is_noticed_or_changes_nothing(two_checkpoints):
    older, newer = two_checkpoints
    content = newer.read_bytes()
    expected = read_checkpoint(newer)
    moment = random.Random(0)
    noticed = 0
    for _ in range(60):
        place = moment.randrange(len(content))
        flipped = content[place] ^ (1 << moment.randrange(8))
        newer.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
        found, reasons = find_resumable(older.parent)
        if reasons:
            assert found == str(older)
            noticed += 1
        else:  # between the parts of the archive
            torch.testing.assert_close(
                read_checkpoint(found)['state_dict'], expected['state_dict'], rtol=0, atol=0
            )
    assert noticed > 50


def test_a_missing_checkpoint_is_named(two_checkpoints):
    older, newer = two_checkpoints
    (older.parent / 'last_checkpoint').write_text(newer.name)
    newer.unlink()
    found, (reason,) = find_resumable(older.parent)
    assert found == str(older)
    assert reason.endswith('names epoch_2.pth, which does not exist')


@pytest.mark.parametrize('named', [b'\xff\xfe', b'a' * 5000, b'', b'../../etc/passwd', b'x\0y'])
def test_garbage_in_last_checkpoint_is_no_obstacle(named, two_checkpoints):
    older, newer = two_checkpoints
    (older.parent / 'last_checkpoint').write_bytes(named)
    assert find_resumable(older.parent)[0] == str(newer)


ODD = {
    'meta is a list': dict(meta=[]),
    'meta is nothing': dict(meta=None),
    'iter is a text': dict(iter='7'),
    'iter is negative': dict(iter=-1),
    'iter is true': dict(iter=True),
    'epoch is missing': dict(epoch=None),
    'weights of NaN': dict(fill=float('nan')),
    'weights of another model': dict(shape=3),
    'weights of no model': dict(weights={}),
}


@pytest.mark.parametrize('odd', ODD)
def test_an_odd_file_is_skipped_with_its_reason(odd, two_checkpoints):
    older, newer = two_checkpoints
    content, change = read_checkpoint(newer), dict(ODD[odd])
    first = next(iter(content['state_dict']))
    if 'meta' in change:
        content['meta'] = change['meta']
    elif 'fill' in change:
        content['state_dict'][first].fill_(change['fill'])
    elif 'shape' in change:
        content['state_dict'][first] = torch.zeros(change['shape'])
    elif 'weights' in change:
        content['state_dict'] = {}
    else:
        content['meta'].update(change)
    torch.save(content, newer)
    found, (reason,) = find_resumable(older.parent, cfg=Config.fromfile(ROOT / NANO))
    assert found == str(older)
    assert str(newer) in reason


def test_clocks_do_not_decide_which_checkpoint_is_the_last(two_checkpoints):
    older, newer = two_checkpoints
    content = read_checkpoint(older)
    content['meta']['time'] = '20401231_235959'  # by a clock ahead, or in another time zone
    torch.save(content, older)
    assert find_resumable(older.parent) == (str(newer), [])
    (older.parent / 'last_checkpoint').write_text(str(older))
    assert find_resumable(older.parent) == (str(older), [])


def test_weights_without_a_state_are_nothing_to_resume(trained, tmp_path):
    content = read_checkpoint(trained.checkpoint)
    torch.save({'meta': content['meta'], 'state_dict': content['state_dict']}, tmp_path / 'b.pth')
    assert find_resumable(tmp_path) == (None, [])


def test_checkpoints_in_another_folder_are_found(trained, tmp_path):
    folder = tmp_path / 'elsewhere' / 'work'
    folder.mkdir(parents=True)
    shutil.copy(trained.checkpoint, folder)
    options = on(trained.data, f'default_hooks.checkpoint.out_dir={tmp_path}/elsewhere')
    arguments = (NANO, '--work-dir', tmp_path / 'work', '--resume')
    output = succeed('train.py', *arguments, *options, 'train_cfg.max_epochs=2')
    assert f'training resumes from {folder}/epoch_1.pth' in output
    assert (folder / 'epoch_2.pth').exists()


def test_resume_says_what_it_passes_over(two_checkpoints, trained):
    older, newer = two_checkpoints
    newer.write_bytes(newer.read_bytes()[:5000])
    arguments = (NANO, '--work-dir', older.parent, '--resume')
    output = succeed('train.py', *arguments, *on(trained.data, 'train_cfg.max_epochs=2'))
    assert f'skipped: checkpoint {newer} cannot be read' in output
    assert f'training resumes from {older}' in output
    verify_checkpoint(newer)  # written again


def test_a_checkpoint_that_names_files_of_others_lets_nothing_be_removed(trained, tmp_path):
    folder, work = tmp_path / 'precious', tmp_path / 'work'
    names = ['thesis.pth', 'epoch_7.pth', 'best_coco_bbox_mAP_epoch_1.pth', 'a.txt']
    for place in (folder, work):
        place.mkdir()
        for name in names:
            (place / name).write_text('precious')
    content = read_checkpoint(trained.checkpoint)
    info = content['message_hub']['runtime_info']
    info['kept_checkpoints'] = [
        str(folder / 'epoch_7.pth'), '../precious/thesis.pth', 'thesis.pth', 'a.txt', '', None, 3,
    ]  # fmt: skip
    info['keep_ckpt_ids'] = ['/../../precious/epoch_7', '7', 7]
    info['best_ckpt'], info['best_score'] = str(folder / 'thesis.pth'), -1.0
    torch.save(content, tmp_path / 'x.pth')
    options = [
        f'default_hooks.checkpoint.{option}'
        for option in ('max_keep_ckpts=1', 'save_best=coco/bbox_mAP')
    ]
    arguments = (NANO, '--work-dir', work, '--resume', tmp_path / 'x.pth')
    succeed('train.py', *arguments, *on(trained.data, 'train_cfg.max_epochs=3', *options))
    assert (work / 'epoch_3.pth').exists()
    assert not (work / 'epoch_2.pth').exists()  # what the training itself has written
    for place in (folder, work):
        assert [(place / name).read_text() for name in names] == ['precious'] * 4


INTERRUPTED = f"""
_base_ = '{ROOT}/{NANO}'
custom_imports = dict(
    imports=['faults', 'gcvit_mm', 'gcvit_mm.datasets', 'gcvit_mm.engine', 'gcvit_mm.evaluation']
)
custom_hooks = [dict(type='KillInValidation', epoch=2)]
default_hooks = dict(checkpoint=dict(save_best='coco/bbox_mAP', rule='less'))
"""


def test_a_validation_that_was_interrupted_is_made_up_for(tiny_shapes, tmp_path):
    config, work = tmp_path / 'config.py', tmp_path / 'work'
    config.write_text(INTERRUPTED)
    options = on(tiny_shapes, 'train_cfg.max_epochs=2')
    arguments = ('train.py', config, '--work-dir', work, '--resume', *options)
    assert call(*arguments).returncode == -signal.SIGKILL
    assert (work / 'epoch_2.pth').exists()
    output = succeed(*arguments)
    assert 'Epoch(val) [2]' in output and 'Epoch(train)' not in output
    assert 'coco/bbox_mAP' in output
    assert len(list(work.glob('best_*.pth'))) == 1


# --- No room ----------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_an_error_with_its_name():
    with pytest.raises(UserError, match=r'/proc/none/x.pth cannot be written'):
        WholeFileBackend().put(b'content', '/proc/none/x.pth')


def test_a_file_of_the_backend_is_whole_or_the_old_one(tmp_path):
    file = tmp_path / 'new folder/x.pth'
    WholeFileBackend().put(b'old', file)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match='is the disk full'):
            WholeFileBackend().put(b'new' * 1000, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in file.parent.iterdir()] == ['x.pth']
    assert file.read_bytes() == b'old'


@pytest.fixture
def small_disk(trained, tmp_path) -> Path:
    """A file system with room for a checkpoint and a half."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    size = trained.checkpoint.stat().st_size * 3 // 2
    mounted = subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'none', folder], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f'a file system cannot be mounted here: {mounted.stderr.decode().strip()}')
    yield folder
    with contextlib.suppress(OSError):
        subprocess.run(['umount', folder], check=False)


@pytest.mark.parametrize('on_failure', ['stop', 'continue'])
def test_a_disk_that_fills_up_leaves_the_earlier_checkpoint(
    on_failure, small_disk, trained, tmp_path
):
    process = start(
        small_disk,
        [
            NANO,
            *on(
                trained.data,
                'train_cfg.max_epochs=3',
                f'default_hooks.checkpoint.on_failure={on_failure}',
                *NO_EVALUATION,
            ),
        ],
    )
    output, _ = process.communicate()
    assert 'Traceback' not in output
    assert 'epoch_2.pth cannot be written, is the disk full?' in output
    if on_failure == 'stop':
        assert process.returncode == 1
        assert 'free disk space and use --resume' in output
        assert 'at 3 epochs' not in output
    else:
        assert process.returncode == 0
        assert 'training continues without this checkpoint' in output
        assert 'epoch_3.pth cannot be written' in output
    assert [path.name for path in small_disk.glob('*.pth*')] == ['epoch_1.pth']
    assert find_resumable(small_disk) == (str(small_disk / 'epoch_1.pth'), [])


@pytest.mark.parametrize('on_failure', ['stop', 'continue'])
def test_a_disk_without_room_for_the_log_is_one_line(on_failure, small_disk, trained, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(
        f"_base_ = '{ROOT}/{NANO}'\n"
        "custom_imports = dict(imports=['faults', 'gcvit_mm.register'])\n"
        "custom_hooks = [dict(type='FillDisk', iteration=1)]\n"
        f"default_hooks = dict(checkpoint=dict(on_failure='{on_failure}'))\n"
    )
    each = ['train_cfg.max_epochs=2', 'default_hooks.logger.interval=1', *NO_EVALUATION]
    run = call('train.py', config, '--work-dir', small_disk / 'work', *on(trained.data, *each))
    output = run.stdout + run.stderr
    assert 'Traceback' not in output
    assert 'No space left on device' in output
    if on_failure == 'stop':
        assert run.returncode == 1
        assert run.stderr.splitlines()[-1].startswith('error: ')
        assert run.stderr.count('error: ') == 1
    else:
        assert run.returncode == 0, output
        assert '[2][2/2]' in run.stdout  # the terminal gets what the file does not
        assert run.stderr.count('the log cannot be written') == 1
        assert 'epoch_1.pth cannot be written' in output


def test_a_read_only_disk_is_one_line_before_the_first_step(small_disk, trained):
    subprocess.run(['mount', '-o', 'remount,ro', small_disk], check=True)
    error = fail('train.py', NANO, '--work-dir', small_disk / 'work', *on(trained.data))
    assert f'{small_disk}/work cannot be written: Read-only file system' in error


def test_a_work_directory_of_an_older_version_resumes_with_the_same_losses(tmp_path):
    """The losses are those that followed the checkpoint in that version."""
    data = make_shapes(tmp_path / 'shapes', train=8, val=2, size=64)
    work_dir = shutil.copytree(ROOT / 'tests/golden/old_work_dir', tmp_path / 'work')
    (config,) = work_dir.glob('*.py')
    roots = [f'{name}_dataloader.dataset.data_root={data}' for name in ('train', 'val', 'test')]
    options = ['--work-dir', work_dir, '--resume', '--cfg-options', *roots]
    assert f'training resumes from {work_dir}/iter_3.pth' in succeed('train.py', config, *options)
    log = read_run(work_dir).steps
    expected = [1.939626, 1.939568, 1.939942]
    assert [entry['loss'] for entry in log] == pytest.approx(expected, abs=2e-6)
    assert (work_dir / 'iter_6.pth').is_file()
