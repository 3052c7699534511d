"""The installed package: what it carries, its command, and the zoo's names."""

import subprocess
import sys

import pytest
from command_line import ENVIRONMENT, ROOT

from gcvit_mm.errors import UserError
from gcvit_mm.zoo import CONFIGS, config_file, names


def gcvit_mm(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, 'tools/gcvit-mm', *map(str, arguments)]
    options = {'cwd': ROOT, 'env': ENVIRONMENT, **options}
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_built_package_has_configs_tools_and_the_list_of_weights(tmp_path):
    build = [sys.executable, 'setup.py', '-q', 'build_py', '--build-lib', tmp_path]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    carried = tmp_path / 'gcvit_mm/.mim'
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
    with pytest.raises(UserError, match=r'own2.py does not exist: give a file, or one of cascade'):
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
