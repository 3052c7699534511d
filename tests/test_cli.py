"""Commands answer at once, in any environment: what a question does not need is not imported."""

import inspect
import re
import shutil
import subprocess
import sys
import venv

import pytest
from command_line import ENVIRONMENT, NANO, ROOT, on
from mmengine.runner import Runner

from gcvit_mm.run_config import RUNNER_SECTIONS

TOOLS = sorted(path.name for path in (ROOT / 'tools').glob('[!_]*.py'))


def imports(tool: str, *arguments: object) -> tuple[subprocess.CompletedProcess, set[str]]:
    """Run a tool; give also the modules that it imported."""
    command = [sys.executable, '-X', 'importtime', f'tools/{tool}', *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    return done, set(re.findall(r'^import time:.*\| +(\S+)$', done.stderr, re.MULTILINE))


@pytest.mark.parametrize('tool', TOOLS)
def test_help_needs_the_standard_library_alone(tool):
    done, loaded = imports(tool, '--help')
    assert done.returncode == 0 and done.stdout.startswith('usage: ')
    assert not {'torch', 'mmengine', 'numpy', 'rich', 'tqdm', 'yaml'} & loaded


@pytest.mark.parametrize(
    ('tool', 'arguments', 'message'),
    [
        ('train.py', ['mask_rcnn_gcvit_tiny_cocoo'], 'did you mean mask_rcnn_gcvit_tiny_coco'),
        ('train.py', ['BROKEN'], 'SyntaxError'),
        ('train.py', [NANO, '--cfg-options', 'modle.x=1'], 'did you mean model?'),
        ('test.py', [NANO, 'gone.pth'], 'checkpoint gone.pth does not exist'),
        ('infer.py', [NANO, 'gone.jpg', '--out', 'OUT'], 'gone.jpg names no image or video'),
        ('infer.py', [NANO, '.', '--out', 'OUT', '--checkpoint', 'gone.pth'], 'gone.pth does not'),
        ('export.py', ['gone', '--out', 'OUT.onnx'], 'config gone does not exist'),
        ('report.py', ['gone'], 'work directory gone does not exist'),
        ('publish_checkpoint.py', ['gone.pth', 'OUT.pth'], 'checkpoint gone.pth does not exist'),
    ],
)
def test_mistakes_are_answered_without_torch(tool, arguments, message, tmp_path):
    (tmp_path / 'broken.py').write_text('model = dict(\n')
    places = {'BROKEN': tmp_path / 'broken.py', 'OUT': tmp_path / 'out'}
    done, loaded = imports(tool, *(places.get(argument, argument) for argument in arguments))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith('error: ') and message in last
    assert 'torch' not in loaded


def test_data_that_are_not_there_are_noticed_before_a_model_is_imported(tmp_path):
    done, loaded = imports('train.py', NANO, '--work-dir', tmp_path / 'w', *on(tmp_path / 'gone'))
    assert f'data folder {tmp_path}/gone (train_dataloader) does not exist' in done.stderr
    assert not {'mmdet.models', 'mmengine.model', 'gcvit_mm.models'} & loaded


def test_a_check_of_data_imports_the_data_sets_alone(tiny_shapes):
    done, loaded = imports('check_dataset.py', NANO, *on(tiny_shapes))
    assert done.returncode == 0 and '0 errors' in done.stdout
    assert 'mmdet.datasets.base_det_dataset' in loaded
    assert not {'mmdet.datasets.transforms', 'mmengine.model', 'torchvision'} & loaded


def test_a_missing_package_is_one_line_and_an_import_of_the_users_a_traceback(tmp_path):
    (tmp_path / 'script.py').write_text('import no_such_module')
    command = [sys.executable, 'tools/check_dataset.py', NANO]
    environment = {**ENVIRONMENT, 'PYTHONPATH': f'{tmp_path}:{ROOT}'}
    options = dict(cwd=ROOT, env=environment, capture_output=True, text=True)
    (tmp_path / 'sitecustomize.py').write_text("import sys; sys.modules['rich'] = None")
    error = subprocess.run(command, **options).stderr
    assert error.startswith(f'error: rich is not installed for {sys.executable}: pip install')
    command = [sys.executable, '-m', 'gcvit_mm', tmp_path / 'script.py']
    error = subprocess.run(command, **options).stderr
    assert error.startswith('Traceback') and "No module named 'no_such_module'" in error


def test_what_the_packages_say_of_themselves_is_not_shown(trained):
    assert not re.search('OneDL|FileClient|HardDiskBackend', trained.output)
    assert 'mmcv ops: ' in trained.output  # other lines of the same kind


def test_options_may_add_every_section_that_a_runner_takes():
    assert {*inspect.signature(Runner.__init__).parameters} - {'self', 'cfg'} == RUNNER_SECTIONS


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    """A copy of the package beside an environment in which nothing is installed."""
    root = tmp_path_factory.mktemp('checkout with a space')
    for folder in ('gcvit_mm', 'tools', 'configs'):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns('__pycache__'))
    venv.create(root / 'empty')
    return root


def fail_outside(checkout, *command: str) -> str:
    """The only line that a command prints where nothing is installed."""
    alone = {name: value for name, value in ENVIRONMENT.items() if name != 'PYTHONPATH'}
    done = subprocess.run(
        [checkout / 'empty/bin/python', *command],
        cwd=checkout,
        env=alone,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.count('\n') == 1
    return done.stderr


@pytest.mark.parametrize(
    'command',
    [
        ['tools/train.py', NANO],
        ['tools/infer.py', NANO, 'configs', '--out', 'out', '--trust-checkpoint'],
        ['tools/check_dataset.py', NANO, '--cfg-options', 'a=b'],
        ['tools/make_shapes.py', 'shapes'],
        ['-m', 'gcvit_mm.command', 'report', 'configs'],
    ],
)
def test_outside_the_environment_one_line_says_how_to_get_in(command, checkout):
    error = fail_outside(checkout, *command)
    assert error.startswith('error: gcvit_mm needs mmengine, which is not installed for ')
    assert "pip install 'gcvit_mm[mm]'" in error
    (checkout / '.venv').mkdir()
    try:
        error = fail_outside(checkout, *command)
    finally:
        (checkout / '.venv').rmdir()
    assert error.endswith(f": source '{checkout}/.venv'/bin/activate\n")


@pytest.mark.parametrize(
    ('own', 'shown'),
    [
        ({}, "GOMP_SPINCOUNT = '3000'"),
        ({'GOMP_SPINCOUNT': '5'}, "GOMP_SPINCOUNT = '5'"),
        ({'OMP_WAIT_POLICY': 'ACTIVE'}, "OMP_WAIT_POLICY = 'ACTIVE'"),
    ],
)
def test_threads_that_wait_sleep_soon_unless_the_environment_says_otherwise(own, shown):
    """OpenMP itself says what is in force in a tool that imports PyTorch."""
    command = [sys.executable, 'tools/check_dataset.py', NANO]
    kept = {k: v for k, v in ENVIRONMENT.items() if k not in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY')}
    environment = {**kept, 'OMP_DISPLAY_ENV': 'VERBOSE', **own}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert shown in done.stderr
