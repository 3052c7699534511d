"""The set-up behind ``make demo`` and ``make test``: Python, environment and pins."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from command_line import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FILES = ('Makefile', 'setup.py', 'pyproject.toml', 'requirements.txt', 'requirements-all.txt')
PYTHONS = ('3.11', '3.12', '3.13', '3.14')


def make(folder: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess:
    """Make in a copy of the repository's files that set-ups need, with no environment active."""
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    outside = ('VIRTUAL_ENV', 'CONDA_', 'MAKE', 'MFLAGS')
    kept = {name: value for name, value in os.environ.items() if not name.startswith(outside)}
    command = ['make', '--no-print-directory', *map(str, arguments)]
    options = dict(capture_output=True, text=True)
    return subprocess.run(command, cwd=folder, env=kept | variables, **options)


def python_of(folder: Path, release: str) -> Path:
    """A command that says which Python it is, and is one without venv and pip."""
    path = folder / f'python-{release}'
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "Python {release}"\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize('releases', [['3.15.0'], ['3.9.2', '3.10.12'], []])
def test_a_python_that_is_not_supported_is_named_and_nothing_is_made(releases, tmp_path):
    pythons = [python_of(tmp_path, release) for release in releases]
    run = make(tmp_path, 'demo', f'PYTHONS={" ".join(map(str, pythons)) or "none-such"}')
    assert run.returncode
    for python, release in zip(pythons, releases, strict=True):
        assert f'{python} is Python {release}, ' in run.stderr
    assert releases or 'no Python was found' in run.stderr
    assert 'Python 3.11 to 3.14 with venv and pip are supported' in run.stderr
    assert 'make PYTHONS=' in run.stderr
    assert not (tmp_path / '.venv').exists()


@pytest.mark.parametrize(
    ('active', 'taken'),
    [
        ({}, '.venv'),
        ({'CONDA_PREFIX': '/opt/conda', 'CONDA_DEFAULT_ENV': 'base'}, '.venv'),
        ({'CONDA_PREFIX': '/opt/conda/envs/mine', 'CONDA_DEFAULT_ENV': 'mine'}, '/opt/conda/envs'),
        ({'VIRTUAL_ENV': '/home/me/env', 'CONDA_DEFAULT_ENV': 'base'}, '/home/me/env'),
    ],
)
def test_the_environment_that_is_active_is_taken_and_never_condas_base(active, taken, tmp_path):
    shown = make(tmp_path, '-n', 'demo', **active).stdout
    (demo,) = re.findall(r'^"(.*)" tools/demo.py', shown, flags=re.M)
    assert taken in demo
    assert '/opt/conda/bin' not in shown


def test_an_active_environment_of_another_python_is_named(tmp_path):
    python = python_of(tmp_path, '3.10.12')
    (tmp_path / 'old/bin').mkdir(parents=True)
    python.rename(tmp_path / 'old/bin/python')
    run = make(tmp_path, 'demo', VIRTUAL_ENV=str(tmp_path / 'old'))
    assert run.returncode
    assert f'{tmp_path}/old has Python 3.10.12, and Python 3.11 to 3.14 with pip' in run.stderr


def pins(name: str, environment: dict[str, str]) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line[0] != '#']
    found = {}
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            (specifier,) = requirement.specifier
            assert specifier.operator == '=='
            found[canonicalize_name(requirement.name)] = specifier.version
    return found


@pytest.mark.parametrize('release', PYTHONS)
def test_pins_hold_what_the_project_asks_for_and_the_demonstration_needs_few(release):
    """They are complete: pip installs them without looking for more."""
    linux = dict(python_version=release, python_full_version=f'{release}.0', sys_platform='linux')
    names = ('requirements.txt', 'requirements-all.txt', 'requirements-docs.txt')
    run, everything, docs = (pins(name, linux) for name in names)
    assert run.items() < everything.items()
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    for extra, asked in project['optional-dependencies'].items():
        for requirement in map(Requirement, asked + project['dependencies']):
            of = {'mm': run, 'docs': docs}.get(extra, everything)
            assert of[canonicalize_name(requirement.name)] in requirement.specifier
    # Large and of no use here, or another OpenCV in the same folder.
    assert not everything.keys() & {'numba', 'llvmlite', 'opencv-python'}
    assert ('audioop-lts' in everything) == (release >= '3.13')


def test_what_is_installed_needs_nothing_that_is_not_pinned():
    """All requirements of installed packages, but those that pyproject.toml says are not needed."""
    from importlib.metadata import PackageNotFoundError, requires

    settings = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['uv']
    dropped = {Requirement(line).name for line in settings['override-dependencies']}
    here = pins('requirements-all.txt', {})
    for name in here:
        try:
            asked = [Requirement(line) for line in requires(name) or []]
        except PackageNotFoundError:  # in an environment of another kind, as without CUDA
            continue
        for requirement in asked:
            if requirement.marker and not requirement.marker.evaluate({'extra': ''}):
                continue
            needed = canonicalize_name(requirement.name)
            assert needed in here or needed in dropped, f'{name} needs {requirement}'
