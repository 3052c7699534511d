"""Published weights by name, from a server that speaks the hub's protocol."""

import hashlib
import os
import pty
import random
import resource
import runpy
import socket
import subprocess
import sys
import termios
import threading
import time
from dataclasses import dataclass, field, replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import command_line
import pytest
import torch
from reference import write_official

from gcvit_mm import ARCHS, GCViT
from gcvit_mm.errors import UserError
from gcvit_mm.weights.hub import HUB, fetch, find, published, resolve

MB = 10**6
# More than the 10 MiB pieces in which huggingface_hub writes, so that a broken download has one.
CONTENT = random.Random(0).randbytes(12 * MB)
PIECE = 10 * 2**20


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Server:
    """What the server holds, how it misbehaves, and what it was asked."""

    url: str = ''
    content: bytes = CONTENT
    headers: dict = field(default_factory=dict)  # in the place of the right ones
    status: int = 200
    breaks: list = field(default_factory=list)  # for each answer: bytes until the connection breaks
    reset: bool = False  # break with a reset, not with an orderly end
    length: int | None = None  # of the content that is sent, as if it were all
    rate: float = 1e12  # bytes a second
    stall: bool = False
    asked: list = field(default_factory=list)  # (method, range or None)
    tokens: list = field(default_factory=list)  # (method or 'storage', credentials or None)

    def downloads(self) -> list:
        return [byte_range for method, byte_range in self.asked if method == 'GET']


class Handler(BaseHTTPRequestHandler):
    """The hub answers /REPOSITORY/resolve/REVISION/FILE with a redirection to a storage server."""

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        state = self.server.state
        if self.path.startswith('/storage'):
            return self.do_storage()
        state.asked.append((self.command, self.headers['Range']))
        state.tokens.append((self.command, self.headers['Authorization']))
        while state.stall:
            time.sleep(0.05)
        headers = {
            'X-Repo-Commit': '7' * 40,
            'X-Linked-ETag': f'"{sha256(state.content)}"',
            'X-Linked-Size': str(len(state.content)),
            'ETag': '"another"',
            'Content-Length': '0',
            # Another name for this host: what is sent to the hub must not go there.
            'Location': state.url.replace('127.0.0.1', 'localhost') + '/storage',
            **state.headers,
        }
        self.answer(302 if state.status == 200 else state.status, headers)

    do_GET = do_HEAD

    def do_storage(self):
        state = self.server.state
        state.tokens.append(('storage', self.headers['Authorization']))
        content = state.content[: state.length]
        start = int((self.headers['Range'] or 'bytes=0-')[len('bytes=') : -1])
        if start >= len(content):
            return self.answer(416, {'Content-Length': '0'})
        headers = {'Content-Length': str(len(content) - start)}
        if start:
            headers['Content-Range'] = f'bytes {start}-{len(content) - 1}/{len(content)}'
        self.answer(206 if start else 200, headers)
        end = len(content)
        if state.breaks:
            end = start + state.breaks.pop(0)
        for at in range(start, end, MB):
            time.sleep(MB / state.rate)
            self.wfile.write(content[at : min(at + MB, end)])
        if end < len(content) and state.reset:
            time.sleep(0.3)  # a reset discards what was not read
            linger_0 = b'\1\0\0\0\0\0\0\0'
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_0)
            self.wfile.close = self.rfile.close = lambda: None
            self.connection.close()

    def answer(self, status: int, headers: dict):
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()


@pytest.fixture
def server(tmp_path, monkeypatch):
    http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    http.state = Server(f'http://127.0.0.1:{http.server_port}')
    threading.Thread(target=http.serve_forever, args=[0.01], daemon=True).start()
    for name, value in {
        'HF_ENDPOINT': http.state.url,
        'GCVIT_MM_CHECKPOINTS': str(tmp_path / 'weights'),
        'HF_HOME': str(tmp_path / 'home'),
        'NO_PROXY': '127.0.0.1,localhost',
        'HF_HUB_DISABLE_TELEMETRY': '1',  # it asks for more than the files
    }.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setitem(command_line.ENVIRONMENT, name, value)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY', True)
    yield http.state
    http.state.stall = False
    http.shutdown()
    http.server_close()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'weights'


XXTINY = replace(find('xxtiny'), sha256='')


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def failure(folder: Path, weights=XXTINY) -> str:
    """The error of a fetch that must fail; it is one line with all that one needs to go on."""
    with pytest.raises(UserError) as caught:
        fetch(weights, folder)
    message = str(caught.value)
    assert '\n' not in message
    url = weights.url.replace(HUB, os.environ['HF_ENDPOINT'])
    assert f'download {url} to {folder / weights.file}' in message
    assert not (folder / weights.file).exists()
    return message


# --- What arrives -----------------------------------------------------------------------------


def test_official_weights_load_by_name_through_init_cfg(server, folder, tmp_path):
    server.content = Path(write_official(tmp_path / 'official.pth', 'xxtiny')).read_bytes()
    config = dict(type='Pretrained', checkpoint='gcvit://xxtiny')
    weight = torch.load(tmp_path / 'official.pth', weights_only=False)['state_dict']
    for requests in (['HEAD', 'GET'], []):
        server.asked.clear()
        model = GCViT('xxtiny', init_cfg=config)
        model.init_weights()
        assert torch.equal(model.stem.conv.weight, weight['patch_embed.proj.weight'])
        assert [method for method, _ in server.asked] == requests
        assert names(folder) == ['gcvit_1k_xxtiny.pth.tar']  # and nothing else is left
    with pytest.raises(UserError, match=r'gcvit://xxtiny.*GC ViT xtiny'):
        GCViT('xtiny', init_cfg=config).init_weights()


def test_file_that_is_there_is_taken_without_a_request(server, folder):
    folder.mkdir()
    for weights in published().values():
        (folder / weights.file).write_bytes(b'mine')
        assert resolve(f'gcvit://{weights.name}') == str(folder / weights.file)
        assert (folder / weights.file).read_bytes() == b'mine'
    assert server.asked == []


def test_huggingface_hub_is_needed_only_to_fetch(server, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub.utils', None)
    assert 'pip install huggingface_hub' in failure(folder)
    folder.mkdir()
    (folder / XXTINY.file).touch()
    assert fetch(XXTINY, folder) == folder / XXTINY.file


def test_weights_are_looked_for_under_the_working_folder_by_default(tmp_path, monkeypatch):
    monkeypatch.delenv('GCVIT_MM_CHECKPOINTS', raising=False)
    monkeypatch.chdir(tmp_path)
    Path('checkpoints').mkdir()
    Path('checkpoints/gcvit_1k_tiny.pth.tar').touch()
    assert Path(resolve('gcvit://tiny')).samefile('checkpoints/gcvit_1k_tiny.pth.tar')


def test_weights_that_are_not_on_the_hub_are_verified_by_the_digits_of_their_name(server, folder):
    headers = {'X-Linked-ETag': None, 'X-Linked-Size': None, 'ETag': None}
    server.headers = headers
    digits = sha256(CONTENT)[:8]
    weights = replace(find('timm_tiny'), url=f'{server.url}/timm-{digits}.pth', sha256=digits)
    assert fetch(weights, folder).read_bytes() == CONTENT
    (folder / weights.file).unlink()
    assert f'instead of {"0" * 8}' in failure(folder, replace(weights, sha256='0' * 8))


def test_token_of_the_hub_is_for_the_hub_alone(server, folder, monkeypatch):
    monkeypatch.setenv('HF_TOKEN', 'hf_secret')
    fetch(XXTINY, folder)
    assert server.tokens == [
        ('HEAD', 'Bearer hf_secret'),
        ('GET', 'Bearer hf_secret'),
        ('storage', None),
    ]
    server.tokens.clear()
    fetch(replace(find('timm_tiny'), url=f'{server.url}/timm.pth', sha256=''), folder)
    assert server.tokens == [('HEAD', None), ('GET', None), ('storage', None)]


# --- Interruptions ----------------------------------------------------------------------------


@pytest.mark.parametrize('reset', [False, True])
def test_broken_connection_is_taken_up_where_it_broke(server, folder, reset):
    server.breaks, server.reset = [11 * MB], reset
    assert fetch(XXTINY, folder).read_bytes() == CONTENT
    assert server.downloads() == [None, f'bytes={PIECE}-']
    assert names(folder) == [XXTINY.file]


def test_next_run_goes_on_where_the_last_was_interrupted(server, folder):
    server.breaks, server.reset = [11 * MB, 0], True
    failure(folder)
    (part,) = names(folder)
    assert part.endswith('.part')
    assert (folder / part).stat().st_size == PIECE
    assert fetch(XXTINY, folder).read_bytes() == CONTENT
    assert server.downloads() == [None, *[f'bytes={PIECE}-'] * 2]
    assert names(folder) == [XXTINY.file]


def test_what_arrived_of_another_version_is_not_gone_on_with(server, folder):
    server.breaks, server.reset = [11 * MB, 0], True
    failure(folder)
    server.content = CONTENT[::-1]
    assert fetch(XXTINY, folder).read_bytes() == CONTENT[::-1]


def test_run_that_was_killed_after_the_last_byte_needs_no_second_download(server, folder):
    folder.mkdir()
    (folder / f'{XXTINY.file}.{sha256(CONTENT)[:8]}.part').write_bytes(CONTENT)
    assert fetch(XXTINY, folder).read_bytes() == CONTENT
    assert server.downloads() == []
    server.headers = {'X-Linked-ETag': None, 'X-Linked-Size': None}  # the size is not known
    weights = replace(XXTINY, sha256=sha256(CONTENT))
    path = folder / weights.file
    path.rename(folder / f'{weights.file}.{weights.sha256[:8]}.part')
    assert fetch(weights, folder).read_bytes() == CONTENT


def test_two_processes_fetch_a_file_once(server, folder):
    server.rate = 12 * MB
    script = (
        'import gcvit_mm.weights.hub, sys; print("ready", flush=True); sys.stdin.readline(); '
        'print(gcvit_mm.weights.hub.resolve("gcvit://xxtiny"))'
    )
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    environment = command_line.ENVIRONMENT
    runs = [
        subprocess.Popen([sys.executable, '-c', script], env=environment, **pipes) for _ in range(2)
    ]
    for run in runs:
        assert run.stdout.readline() == 'ready\n'
    outputs = []
    for run in runs:
        run.stdin.write('go\n')
        run.stdin.flush()
    for run in runs:
        outputs.append(run.communicate()[0])
        assert run.returncode == 0
        assert outputs[-1].splitlines()[-1] == str(folder / XXTINY.file)
    assert (folder / XXTINY.file).read_bytes() == CONTENT
    assert server.downloads() == [None]
    assert sum('licence' in output for output in outputs) == 1
    assert names(folder) == [XXTINY.file]


# --- What is refused --------------------------------------------------------------------------


def test_truncated_file_is_refused(server, folder):
    server.length = 11 * MB
    assert f'sha256 {sha256(CONTENT[: 11 * MB])} instead of' in failure(folder)
    assert names(folder) == []


def test_damaged_file_is_refused_and_removed(server, folder):
    server.headers = {'X-Linked-ETag': sha256(b'what was published')}
    assert f'sha256 {sha256(CONTENT)} instead of' in failure(folder)
    assert names(folder) == []


def test_file_that_the_hub_has_replaced_is_refused_before_the_download(server, folder):
    assert f'has changed, its sha256 is {sha256(CONTENT)}' in failure(folder, find('tiny'))
    assert server.downloads() == []


def test_login_page_is_not_taken_for_weights(server, folder):
    server.headers = {'X-Linked-ETag': None, 'X-Linked-Size': None}
    assert 'login page' in failure(folder)


@pytest.mark.parametrize('status', [401, 403, 404, 500, 503])
def test_refusal_of_the_server_is_named(server, folder, status):
    server.status = status
    assert f'HTTP status {status}' in failure(folder)
    assert names(folder) == []


def test_no_network(server, folder, monkeypatch):
    with socket.socket() as unused:
        unused.bind(('127.0.0.1', 0))
        monkeypatch.setenv('HF_ENDPOINT', f'http://127.0.0.1:{unused.getsockname()[1]}')
        assert 'refused' in failure(folder)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    assert 'HF_HUB_OFFLINE' in failure(folder)


def test_full_disk(server, folder):
    server.headers = {'X-Linked-Size': str(10**18)}
    assert 'the disk has' in failure(folder)
    assert server.downloads() == []
    server.headers = {}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5 * MB, limits[1]))
    try:
        assert 'File too large' in failure(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / 'file').touch()
    assert 'file' in failure(tmp_path / 'file' / 'weights')


def test_unknown_names(server):
    with pytest.raises(UserError, match=r'gcvit://tyni.*large_21k_384.*did you mean tiny'):
        resolve('gcvit://tyni')
    for other in ('checkpoints/tiny.pth', 'tiny', 'https://example.org/tiny.pth'):
        assert resolve(other) == other
    assert server.asked == []


# --- The command line -------------------------------------------------------------------------


@pytest.fixture
def download(monkeypatch):
    """The tool, run in this process: importing torch anew takes seconds."""

    def call(*arguments: object) -> None:
        monkeypatch.setattr(sys, 'argv', ['download_checkpoint.py', *map(str, arguments)])
        script = command_line.ROOT / 'tools/download_checkpoint.py'
        runpy.run_path(str(script), run_name='__main__')

    return call


def test_slow_download_shows_its_progress_and_the_licence(
    server, download, tmp_path, monkeypatch, capsys
):
    server.rate = 20 * MB
    reader, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    with os.fdopen(terminal, 'w') as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, 'stderr', stderr)
        download('xxtiny', '--dir', tmp_path / 'here')
    shown = os.read(reader, 10_000).decode()
    os.close(reader)
    assert XXTINY.file in shown
    assert '10.5M/12.0M' in shown  # the first piece
    assert '100%' in shown
    output = capsys.readouterr().out
    assert 'licence CC BY-NC-SA 4.0' in output
    assert f'xxtiny: {tmp_path}/here/{XXTINY.file}' in output
    assert (tmp_path / 'here' / XXTINY.file).read_bytes() == CONTENT


def test_server_that_does_not_answer_is_given_up(server, folder, monkeypatch):
    server.stall = True
    monkeypatch.setitem(command_line.ENVIRONMENT, 'HF_HUB_ETAG_TIMEOUT', '1')
    start = time.monotonic()
    error = command_line.fail('download_checkpoint.py', 'xxtiny')
    assert time.monotonic() - start < 20
    assert 'timed out' in error
    assert str(folder / XXTINY.file) in error


def test_list_tells_licence_and_presence_of_every_file(server, download, folder, capsys):
    folder.mkdir()
    (folder / find('tiny').file).touch()
    download('--list')
    rows = capsys.readouterr().out.splitlines()[1:-1]
    assert [row.split()[0] for row in rows] == list(published())
    assert all('CC BY-NC-SA 4.0' in row for row in rows)
    assert [row.split()[0] for row in rows if ' yes ' in row] == ['tiny']
    assert server.asked == []


def test_nothing_is_fetched_before_all_names_are_known(server, download, capsys):
    with pytest.raises(SystemExit, match='1'):
        download('xxtiny', 'tyni')
    assert 'did you mean tiny' in capsys.readouterr().err
    assert server.asked == []


def test_a_file_that_needs_an_account_is_fetched_by_hand(server, folder):
    with pytest.raises(UserError, match=r'dino_gcvit_tiny0_ep12\.pth needs an account.*ngc.*NC-SA'):
        resolve('gcvit://tao_dino_tiny')
    assert server.asked == []


# --- The manifest -----------------------------------------------------------------------------


def test_manifest_is_complete():
    weights = published()
    assert set(ARCHS) <= set(weights)
    assert all(weights[arch].variant == arch for arch in ARCHS)
    assert len({each.file for each in weights.values()}) == len(weights)
    for each in weights.values():
        assert each.variant in ARCHS
        w = each.resolution // 32
        assert each.windows == [w, w, 2 * w, w]
        if each.member:
            assert each.file.endswith('.pth') and len(each.sha256) == 64 and each.size_mb > 400
            continue
        assert (each.size_mb > 0) != (each.tensors_mb > 0)
        assert 79 < each.top1 < 88
        if each.url.startswith(f'{HUB}/nvidia/GCViT/resolve/main/'):
            assert len(each.sha256) in (0, 64)
        else:
            assert each.file.endswith(f'-{each.sha256}.pth')
            assert len(each.sha256) == 8


def test_sizes_fit_the_models():
    @cache
    def tensors_mb(variant, windows):
        with torch.device('meta'):
            model = GCViT(variant, window_size=windows)
        return sum(p.numel() for p in model.parameters()) * 4 / MB

    for each in published().values():
        if each.member:  # detectors
            continue
        model_mb = tensors_mb(each.variant, tuple(each.windows))
        # NVIDIA's files hold the state of the optimiser as well: three values for each weight, and
        # one holds averaged weights. The classifier is in the files, and not in the model.
        low, high = (2.95, 4.6) if each.size_mb else (1, 1.06)
        assert low < (each.size_mb or each.tensors_mb) / model_mb < high, each.name
