"""What ``tools/doctor.py`` says of environments that really are broken."""

import json
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

import pytest
from command_line import ENVIRONMENT, ROOT, call

SITE = f'lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages'
ONEDL = {
    'onedl-mmengine': ('0.10.12', 'mmengine'),
    'onedl-mmcv': ('2.3.6', 'mmcv'),
    'onedl-mmdetection': ('3.5.1', 'mmdet'),
}


class Environment:
    """An empty virtual environment, into which small packages are written."""

    def __init__(self, path: Path) -> None:
        venv.create(path)
        self.python = path / 'bin' / 'python'
        self.site = path / SITE

    def write(self, name: str, number: str, module: str, code: str = '') -> None:
        info = self.site / f'{name.replace("-", "_")}-{number}.dist-info'
        info.mkdir()
        (self.site / module).mkdir(exist_ok=True)
        (self.site / module / '__init__.py').write_text(code)
        (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n')
        (info / 'RECORD').write_text(f'{module}/__init__.py,,\n{module}/more.py,,\n')

    def write_onedl(self) -> None:
        for name, (number, module) in ONEDL.items():
            self.write(name, number, module)
            (self.site / module / 'more.py').touch()

    def link_ours(self, *without: str) -> None:
        """Link the installed packages, except those whose names begin with one of these."""
        for package in Path(pytest.__file__).parents[1].iterdir():
            if not package.name.startswith((*without, '__pycache__')):
                (self.site / package.name).symlink_to(package)

    def doctor(self, *options: str) -> subprocess.CompletedProcess:
        alone = {k: v for k, v in ENVIRONMENT.items() if not k.startswith('PYTHON')}
        command = [self.python, ROOT / 'tools' / 'doctor.py', *options]
        run = subprocess.run(command, capture_output=True, text=True, env=alone, cwd=self.site)
        assert 'Traceback' not in run.stdout + run.stderr
        return run

    def problems(self) -> dict[str, dict[str, str]]:
        """The errors by what they are about; there must be some."""
        run = self.doctor('--json')
        assert run.returncode == 1, run.stdout + run.stderr
        found = json.loads(run.stdout)
        assert found['ok'] is False
        return {
            finding['name']: finding for finding in found['findings'] if finding['state'] == 'error'
        }


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / 'venv')


@pytest.mark.slow
def test_in_a_good_environment_everything_needed_runs():
    run = call('doctor.py', '--json')
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(run.stdout)
    states = {finding['name']: finding['state'] for finding in found['findings']}
    assert found['ok'] and 'error' not in states.values()
    ran = ('torch', 'torchvision', 'nms', 'roi_align', 'deformable attention', 'attention: sdpa')
    assert {states[name] for name in (*ran, 'mmdet', 'mmseg', 'mmpretrain', 'zoo')} == {'ok'}
    by_name = {finding['name']: finding['found'] for finding in found['findings']}
    assert version('torch') in by_name['torch']
    assert by_name['gcvit_mm'].endswith(str(ROOT / 'gcvit_mm'))
    assert 'runs on cpu' in by_name['nms'] and 'differs from eager' in by_name['attention: sdpa']


def test_an_empty_environment_is_told_what_to_install_without_rich(environment):
    run = environment.doctor()
    assert run.returncode == 1
    for command in ("pip install 'gcvit_mm[mm]'", 'pip install torch torchvision'):
        assert f'\n    {command}\n' in run.stdout
    assert f"\n  pip install -e '{ROOT}[mm]'\n" in run.stdout
    assert 'Machine' in run.stdout and run.stdout.endswith(' errors, 0 warnings\n')
    # What follows from these is not listed again.
    assert 'error: mmcv' not in run.stdout and 'error: nms' not in run.stdout


def test_both_families_are_one_problem(environment):
    environment.write_onedl()
    environment.write('mmdet', '3.3.0', 'mmdet')
    problems = environment.problems()
    assert 'installed over each other' in problems['mm packages']['problem']
    assert 'pip uninstall -y mmdet onedl-mmengine' in problems['mm packages']['fix']
    assert 'mmdet' not in problems and 'mmcv' not in problems


def test_files_that_an_uninstallation_took_are_named(environment):
    environment.write_onedl()
    (environment.site / 'mmdet' / 'more.py').unlink()
    problem = environment.problems()['mmdet']
    assert problem['problem'] == (
        '1 of 2 files of onedl-mmdetection==3.5.1 are gone, mmdet/more.py for example.'
    )
    assert problem['fix'] == 'pip install --force-reinstall --no-deps onedl-mmdetection==3.5.1'


@pytest.mark.parametrize(
    ('code', 'reason'),
    [
        ("raise ImportError('libGL.so.1: cannot open shared object file')", 'libGL.so.1: cannot'),
        ('import ctypes; ctypes.string_at(0)', 'the check of cv2 (SIGSEGV'),
        ('raise SystemExit(3)', 'SystemExit: 3'),
    ],
)
def test_an_opencv_that_fails_or_crashes_is_replaced_by_the_headless_one(environment, code, reason):
    environment.write_onedl()
    environment.write('opencv-python', '4.12.0.88', 'cv2', code)
    problem = environment.problems()['cv2']
    assert reason in problem['problem']
    assert problem['fix'].endswith('--no-deps opencv-python-headless==4.12.0.88')


def test_an_old_torch_is_refused(environment):
    environment.write('torch', '2.0.1', 'torch')
    problem = environment.problems()['torch']
    assert problem['problem'] == 'gcvit_mm needs torch 2.1 or newer, and this is 2.0.1.'


def test_an_apple_gpu_is_named_and_nothing_else_is_tried_on_one_that_fails(environment):
    environment.link_ours('mm', 'onedl', 'gcvit_mm', '__editable__')
    # PyTorch itself unwraps this function.
    (environment.site / 'zz_apple.pth').write_text('import zz_apple')  # Debian has a sitecustomize
    (environment.site / 'zz_apple.py').write_text(
        'import functools, sys\n'
        "if 'PyTorch' in sys.orig_argv:\n"
        '    import torch\n'
        '    torch.backends.mps.is_available = functools.cache(lambda: True)\n'
    )
    run = environment.doctor('--json')
    found = {finding['name']: finding for finding in json.loads(run.stdout)['findings']}
    # PyTorch for Linux has no code for Metal.
    assert found['GPU']['state'] == 'error' and 'Metal (MPS)' in found['GPU']['problem']
    assert found['fused AdamW']['found'] == 'runs on cpu'
    assert found['sdpa kernels']['state'] == 'ok'


@pytest.mark.slow
def test_without_torchvision_one_error_names_the_release_that_fits(environment):
    environment.link_ours('torchvision')
    problems = environment.problems()
    release = '.'.join(version('torch').split('.')[:2])
    command = f"pip install 'torch=={release}.*' 'torchvision>=0.29'"
    assert problems.pop('torchvision')['fix'].startswith(command)
    assert not problems


@pytest.mark.parametrize(
    ('torch', 'fits'),
    [
        ('2.1.2', '==0.16.*'),
        ('2.13.0', '==0.28.*'),
        ('2.14.1', '>=0.29'),
        ('2.15.0+cpu', '>=0.29'),
        ('3.0.0', '>=0.29'),
    ],
)
def test_the_torchvision_that_is_named_was_released_for_the_torch_at_hand(environment, torch, fits):
    environment.write('torch', torch, 'torch')
    fix = environment.problems()['torchvision']['fix']
    assert f"'torchvision{fits}'" in fix
    assert ('https://download.pytorch.org/whl/cpu' in fix) == torch.endswith('+cpu')
