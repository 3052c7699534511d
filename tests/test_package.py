"""The installed package: what it carries, its command, and the zoo's names."""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from command_line import ENVIRONMENT, NANO, ROOT, on

from gcvit_mm.errors import UserError
from gcvit_mm.zoo import CONFIGS, config_file, names


def gcvit_mm(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, '-m', 'gcvit_mm.command', *map(str, arguments)]
    options = {'cwd': ROOT, 'env': ENVIRONMENT, **options}
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_built_package_has_configs_tools_and_the_list_of_weights(tmp_path):
    carried = tmp_path / 'gcvit_mm/.mim'
    (carried / 'tools').mkdir(parents=True)
    (carried / 'tools/of_an_earlier_build.py').touch()
    build = [sys.executable, 'setup.py', '-q', 'build_py', '--build-lib', tmp_path]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    names = [path.relative_to(carried) for path in carried.rglob('*') if path.is_file()]
    tracked = subprocess.run(
        ['git', 'ls-files', 'configs', 'tools', 'model-index.yml', 'checkpoints/manifest.yml'],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert {*tracked} <= {str(name) for name in names}
    for name in names:
        assert (carried / name).read_bytes() == (ROOT / name).read_bytes()


def test_a_config_is_a_file_or_a_name_of_the_zoo(tmp_path):
    own = tmp_path / 'own.py'
    own.write_text('a = 1')
    assert config_file(own) == str(own)
    assert 'mask_rcnn_gcvit_tiny_coco' in names()
    assert config_file('gcvit_tiny_imagenet') == str(CONFIGS / 'gcvit_tiny_imagenet.py')
    with pytest.raises(UserError, match=r'upernet_tiny_ade20k does.*mean upernet_gcvit_tiny_ade2'):
        config_file('upernet_tiny_ade20k')
    with pytest.raises(UserError, match=r'own2.py does not exist: pass a file, or one of cascade'):
        config_file('own2.py')


def test_the_command_lists_the_tools_and_runs_them(tmp_path):
    listed = gcvit_mm().stdout
    assert 'check-dataset' in listed and 'dist-train' in listed and 'zoo-table' not in listed
    written = gcvit_mm('make-shapes', tmp_path / 'shapes', '--train', 2, '--val', 2)
    assert written.returncode == 0, written.stderr
    assert (tmp_path / 'shapes/annotations').is_dir()
    wrong = gcvit_mm('trian')
    assert wrong.returncode == 1
    assert wrong.stderr == 'error: gcvit-mm has no command trian: did you mean train?\n'


@pytest.fixture(scope='module')
def installed(tmp_path_factory) -> Path:
    """The wheel, built from the repository's files, in an environment without the repository."""
    folder = tmp_path_factory.mktemp('installed')
    listing = ['git', 'ls-files', '--cached', '--others', '--exclude-standard', '-z']
    listed = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split('\0')):
        if (ROOT / name).is_file():
            (folder / 'source' / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / 'source' / name)
    environment = folder / 'venv'
    venv.create(environment)
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check']
    build = ['wheel', '--no-deps', '--no-build-isolation', '-w', folder, folder / 'source']
    subprocess.run([*pip, *build], check=True, capture_output=True)
    (wheel,) = folder.glob('*.whl')
    python = environment / 'bin' / 'python'
    command = [*pip, '--python', python, 'install', '--no-deps', '--no-index', wheel]
    subprocess.run(command, check=True, capture_output=True)
    (site,) = environment.glob('lib/*/site-packages')
    # The packages that it stands on, behind its own; .pth files in there are not followed.
    (site / 'others.pth').write_text(sysconfig.get_path('purelib'))
    find = "from importlib.util import find_spec; print(find_spec('gcvit_mm').origin)"
    found = subprocess.run(
        [python, '-c', find], cwd=folder, check=True, capture_output=True, text=True
    )
    assert found.stdout.strip() == str(site / 'gcvit_mm' / '__init__.py')
    return environment


@pytest.mark.slow
def test_the_wheel_trains_and_evaluates_far_from_the_repository(installed, tmp_path):
    def gcvit_mm(*arguments: object) -> str:
        command = [installed / 'bin' / 'gcvit-mm', *map(str, arguments)]
        alone = {name: value for name, value in ENVIRONMENT.items() if name != 'PYTHONPATH'}
        run = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout + run.stderr

    assert 'large_21k_512' in gcvit_mm('download-checkpoint', '--list')
    gcvit_mm('make-shapes', 'data/shapes', '--train', 8, '--val', 5, '--size', 64)
    assert '0 errors' in gcvit_mm('check-dataset', Path(NANO).stem)
    gcvit_mm('train', Path(NANO).stem, *on(Path('data/shapes')))
    work_dir = tmp_path / 'work_dirs' / Path(NANO).stem
    gcvit_mm('test', Path(NANO).stem, work_dir / 'epoch_1.pth', *on(Path('data/shapes')))
    assert len([*work_dir.glob('*/*.log')]) == 2


@pytest.mark.slow
def test_the_wheel_keeps_scripts_executable(installed):
    (tools,) = installed.glob('lib/*/site-packages/gcvit_mm/.mim/tools')
    for script in (ROOT / 'tools').glob('*.sh'):
        ours, theirs = script.stat().st_mode, (tools / script.name).stat().st_mode
        assert bool(ours & 0o100) == bool(theirs & 0o100), script.name
