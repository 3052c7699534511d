"""Two processes never write into one folder at once."""

import errno
import os
import runpy
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from command_line import ENVIRONMENT, NANO, ROOT, on

from gcvit_mm import cli
from gcvit_mm.cli import locked
from gcvit_mm.errors import UserError

HOLDER = """
import os, sys, time
from gcvit_mm.cli import locked
with locked(sys.argv[1]):
    if not os.fork():  # a worker, which outlives a kill
        time.sleep(30)
        os._exit(0)
    print('locked', flush=True)
    time.sleep(float(sys.argv[2]))
os._exit(0)
"""
COUNT = """
import sys
from pathlib import Path
from gcvit_mm.cli import locked
for _ in range(20):
    with locked(sys.argv[1], wait=60):
        file = Path(sys.argv[1], 'count')
        number = int(file.read_text() or 0) if file.exists() else 0
        file.write_text('')  # what another process would see
        file.write_text(str(number + 1))
"""


def start(code: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, '-c', code, *map(str, arguments)]
    return subprocess.Popen(
        command, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, start_new_session=True
    )


@pytest.fixture
def holder(tmp_path):
    process = start(HOLDER, tmp_path, 20)
    assert process.stdout.readline() == 'locked\n'
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_second_process_is_refused_until_the_first_is_killed(holder, tmp_path):
    with pytest.raises(UserError) as error, locked(tmp_path, wait=0.2):
        pass
    facts = (str(tmp_path), f'process {holder.pid} on {os.uname().nodename}', '-c', 'folder')
    assert all(fact in str(error.value) for fact in facts), error.value
    with pytest.raises(UserError), locked(f'{tmp_path}/../{tmp_path.name}', wait=0):
        pass  # by another name
    holder.kill()
    holder.wait()
    with locked(tmp_path, wait=0):  # although the forked worker is alive
        pass
    assert not list(tmp_path.iterdir())


def test_a_process_waits_for_one_that_ends(tmp_path):
    process = start(HOLDER, tmp_path, 1)
    assert process.stdout.readline() == 'locked\n'
    with locked(tmp_path):
        assert process.wait() == 0
    os.killpg(process.pid, signal.SIGKILL)


def test_many_processes_take_turns(tmp_path):
    processes = [start(COUNT, tmp_path) for _ in range(6)]
    assert [process.wait() for process in processes] == [0] * 6
    assert (tmp_path / 'count').read_text() == '120'


def test_only_the_first_process_of_a_distributed_run_locks(holder, tmp_path, monkeypatch):
    for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'):
        monkeypatch.setenv(name, '1')
        with locked(tmp_path, wait=0):
            pass
        monkeypatch.setenv(name, '0')
        with pytest.raises(UserError), locked(tmp_path, wait=0):
            pass
        monkeypatch.delenv(name)


def test_a_system_without_locks_and_a_file_system_without_go_on(tmp_path, monkeypatch, capsys):
    with locked(tmp_path):
        monkeypatch.setattr(cli, 'fcntl', None)  # Windows
        with locked(tmp_path):
            pass

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(cli, 'fcntl', SimpleNamespace(flock=flock, LOCK_EX=2, LOCK_NB=4))
    with locked(tmp_path):
        pass
    warning = capsys.readouterr().err
    assert warning.startswith(f'warning: {tmp_path} cannot be locked (No locks available)')
    assert warning.count('\n') == 1


def test_a_link_in_the_folder_and_a_file_in_its_place_are_refused(tmp_path):
    (tmp_path / 'precious').write_text('content')
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/.lock').symlink_to(tmp_path / 'precious')
    cannot = 'cannot be written'
    wrong = {tmp_path / 'out': cannot, tmp_path / 'precious': 'is a file', '/proc/none': cannot}
    for folder, message in wrong.items():
        with pytest.raises(UserError, match=f'{folder} {message}'), locked(folder):
            pass
    assert (tmp_path / 'precious').read_text() == 'content'


@pytest.mark.parametrize('tool', ['train', 'infer', 'test', 'browse_dataset', 'make_shapes'])
def test_a_tool_is_refused_where_another_writes(tool, trained, tmp_path, monkeypatch):
    folder, options = tmp_path / 'out', on(trained.data)
    arguments = {
        'train': [NANO, '--work-dir', folder, *options],
        'infer': [trained.work_dir, trained.data / 'images/validation', '--out', folder],
        'test': [NANO, trained.checkpoint, '--work-dir', tmp_path / 'work', '--out', folder],
        'browse_dataset': [NANO, '--out', folder, *options],
        'make_shapes': [folder],
    }[tool]
    if tool == 'test':
        arguments, folder = [*arguments, *options], tmp_path / 'out.partial'
    script = runpy.run_path(str(ROOT / f'tools/{tool}.py'))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, 'argv', [f'{tool}.py', *map(str, arguments)])
    monkeypatch.setitem(locked.__wrapped__.__kwdefaults__, 'wait', 0.2)
    with locked(folder):
        before = sorted(folder.iterdir())
        with pytest.raises(UserError) as error:
            script['main']()
        assert str(folder) in str(error.value) and str(os.getpid()) in str(error.value)
        assert sorted(folder.iterdir()) == before
