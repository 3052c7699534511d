"""What a user is told at first use, in environments that pip really installed small wheels into."""

import os
import re
import shlex
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The module that each distribution of the test installs.
MODULES = {
    'mmengine': 'mmengine',
    'onedl-mmengine': 'mmengine',
    'mmdet': 'mmdet',
    'onedl-mmdetection': 'mmdet',
    'torch': 'torch',
}


class Environment:
    """An empty virtual environment, and pip working on it without an index."""

    def __init__(self, path: Path) -> None:
        self.use = 'from gcvit_mm import GCViT'
        self.wheels = path / 'wheels'
        self.wheels.mkdir()
        venv.create(path / 'venv')
        self.python = path / 'venv' / 'bin' / 'python'

    def pip(self, *args: str) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(('PIP_', 'PYTHON'))}
        mine = {'PIP_CONFIG_FILE': os.devnull, 'PIP_DISABLE_PIP_VERSION_CHECK': '1'}
        offline = {'PIP_NO_INDEX': '1', 'PIP_FIND_LINKS': str(self.wheels)}
        subprocess.run(
            [sys.executable, '-m', 'pip', '--python', self.python, *args],
            env=kept | mine | offline,
            check=True,
            capture_output=True,
        )

    def install(self, *pins: str) -> None:
        for pin in pins:
            self._make_wheel(*pin.split('=='))
        self.pip('install', *pins)

    def import_gcvit_mm(self, *options: str) -> str:
        """Uses the package in its folder and returns what is printed on standard error."""
        done = subprocess.run(
            [self.python, *options, '-c', self.use],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        # These environments lack too much for the import to go through.
        assert done.returncode == 1
        return done.stderr

    def _make_wheel(self, name: str, version: str) -> None:
        stem = f'{name.replace("-", "_")}-{version}'
        info = f'{stem}.dist-info'
        files = {
            f'{MODULES[name]}/__init__.py': '',
            f'{info}/METADATA': f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n',
            f'{info}/WHEEL': 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n',
        }
        files[f'{info}/RECORD'] = ''.join(f'{file},,\n' for file in [*files, f'{info}/RECORD'])
        with zipfile.ZipFile(self.wheels / f'{stem}-py3-none-any.whl', 'w') as wheel:
            for file, text in files.items():
                wheel.writestr(file, text)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path)


def _pip_commands(message: str) -> list[list[str]]:
    """The pip commands that a message gives, one line each."""
    return [shlex.split(line) for line in re.findall(r'^ +pip (.*)$', message, flags=re.M)]


def test_missing_mmengine_names_both_ways_to_get_it(environment: Environment) -> None:
    message = environment.import_gcvit_mm()
    assert 'ImportError: gcvit_mm needs mmengine, which is not installed.' in message
    assert _pip_commands(message) == [['install', 'gcvit_mm[mm]'], ['install', 'mmengine']]


def test_missing_torch(environment: Environment) -> None:
    environment.install('mmengine==0.10.7')
    message = environment.import_gcvit_mm()
    assert 'ImportError: gcvit_mm needs torch, which is not installed.' in message
    assert ['install', 'torch', 'torchvision'] in _pip_commands(message)


def test_both_families_are_refused_and_either_can_be_kept(environment: Environment) -> None:
    openmmlab = ['mmengine==0.10.7', 'mmdet==3.3.0']
    onedl = ['onedl-mmengine==0.10.12', 'onedl-mmdetection==3.5.1']
    for kept in (0, 1):
        environment.install(*openmmlab, *onedl)
        message = environment.import_gcvit_mm()
        assert "OpenMMLab's and the onedl packages are installed over each other" in message
        assert ' '.join(openmmlab + onedl) in message
        uninstall, *installs = _pip_commands(message)
        assert installs == [['install', *onedl], ['install', *openmmlab]]
        environment.pip(*uninstall)
        environment.pip(*installs[kept])
        assert 'needs torch' in environment.import_gcvit_mm()


def test_files_gone_with_the_other_family(environment: Environment) -> None:
    environment.install('mmengine==0.10.7', 'onedl-mmengine==0.10.12')
    environment.pip('uninstall', '-y', 'mmengine')
    message = environment.import_gcvit_mm()
    assert 'mmengine is listed as installed but its files are gone' in message
    for command in _pip_commands(message):
        environment.pip(*command)
    assert 'needs torch' in environment.import_gcvit_mm()


def test_mmengine_imported_after_the_package_is_no_way_round(environment: Environment) -> None:
    environment.use = 'import gcvit_mm; import mmengine'
    environment.install('mmengine==0.10.7', 'onedl-mmengine==0.10.12')
    assert 'are installed over each other' in environment.import_gcvit_mm()
    environment.use = 'import mmengine; import gcvit_mm'
    assert 'are installed over each other' in environment.import_gcvit_mm()


def test_old_torch_is_refused(environment: Environment) -> None:
    environment.install('mmengine==0.10.7', 'torch==2.0.1')
    message = environment.import_gcvit_mm()
    assert 'ImportError: gcvit_mm needs torch 2.1 or newer, and this is 2.0.1.' in message


@pytest.mark.parametrize(
    ('torch', 'cves'),
    [
        ('2.1.2+cu121', ['CVE-2025-32434', 'CVE-2026-24747']),
        ('2.9.1', ['CVE-2026-24747']),
        ('2.10.0', []),
        ('2.14.1', []),
        ('3.0.0', []),
    ],
)
def test_one_warning_names_what_hits_the_torch_at_hand(
    environment: Environment, torch: str, cves: list[str]
) -> None:
    environment.install('mmengine==0.10.7', f'torch=={torch}')
    message = environment.import_gcvit_mm('-W', 'always')
    assert message.count('UserWarning') == bool(cves)
    assert re.findall(r'CVE-\d+-\d+', message) == cves
    # The line blamed is the user's, not one of ours.
    assert not cves or message.startswith(f'<string>:1: UserWarning: With torch {torch},')


def test_bare_install_neither_pulls_nor_replaces_the_users_packages() -> None:
    bare = [requirement for requirement in requires('gcvit_mm') if 'extra ==' not in requirement]
    assert bare == ['safetensors']
