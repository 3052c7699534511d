"""A published model on the hub: files, upload, download and use, without running its config."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from command_line import ENVIRONMENT, ROOT, fail, succeed

from gcvit_mm import Predictor
from gcvit_mm.config import plain_config, read_config
from gcvit_mm.errors import UserError

PUBLISH = [sys.executable, 'tools/publish_checkpoint.py']


class Hub(BaseHTTPRequestHandler):
    """Uploads and downloads by the hub's protocol, for files of any size as they are."""

    files: dict[str, bytes]

    def log_message(self, *args):
        pass

    def reply(self, content: bytes, **headers):
        self.send_response(200)
        for name, value in {'Content-Length': str(len(content)), **headers}.items():
            self.send_header(name.replace('_', '-'), value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(content)

    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length']))
        url = f'http://{self.headers["Host"]}/me/model'
        if self.path.endswith('/repos/create'):
            answer = {
                'url': f'http://{self.headers["Host"]}/me/model',
                'name': 'me/model',
                'id': '1',
            }
        elif '/preupload/' in self.path:
            names = [file['path'] for file in json.loads(body)['files']]
            answer = {'files': [dict(path=name, uploadMode='regular', shouldIgnore=False)
                                for name in names]}  # fmt: skip
        elif '/commit/' in self.path:
            for line in map(json.loads, body.splitlines()):
                if line['key'] == 'file':
                    value = line['value']
                    self.files[value['path']] = base64.b64decode(value['content'])
            answer = dict(success=True, commitOid='7' * 40, commitUrl=f'{url}/commit/{"7" * 40}')
        else:
            answer = {}
        self.reply(json.dumps(answer).encode(), Content_Type='application/json')

    def do_GET(self):
        name = self.path.rsplit('/', 1)[1]
        if '/resolve/' in self.path and name in self.files and '/me/model/' in self.path:
            content = self.files[name]
            etag = hashlib.sha256(content).hexdigest()
            self.reply(content, ETag=f'"{etag}"', X_Repo_Commit='7' * 40)
        elif '/resolve/' in self.path:
            self.send_response(404)
            self.send_header('X-Error-Code', 'RepoNotFound')
            self.send_header('Content-Length', '0')
            self.end_headers()
        else:
            self.reply(b'{"sha": "%s", "siblings": [], "id": "me/model"}' % (b'7' * 40))

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The address and the files of a hub."""
    handler = type('OneHub', (Hub,), {'files': {}})
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = dict(
        HF_ENDPOINT=f'http://127.0.0.1:{server.server_port}', HF_HOME=str(tmp_path / 'cache'),
        HF_TOKEN='hf_x', HF_HUB_OFFLINE='0', HF_HUB_DISABLE_XET='1',
    )  # fmt: skip
    yield {**ENVIRONMENT, **settings}, handler.files
    server.shutdown()


@pytest.fixture(scope='module')
def folder(trained, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('published') / 'model'
    succeed('publish_checkpoint.py', trained.checkpoint, path, '--licence', 'apache-2.0')
    return path


def picture(path: Path) -> str:
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    return str(path)


def test_a_folder_has_weights_config_and_a_card_that_says_what_they_are(folder, trained):
    record = json.loads((folder / 'model.safetensors.json').read_text())
    card = (folder / 'README.md').read_text()
    assert card.startswith('---\nlicense: apache-2.0\n')
    digest = hashlib.sha256((folder / 'model.safetensors').read_bytes()).hexdigest()
    assert digest in card and 'disk, box, star' in card and 'from scratch' in card
    assert str(trained.data) in card and 'CPU' in card
    for name, value in record['metrics'].items():
        assert f'| {name} | {value:g} |' in card


def test_a_folder_predicts_what_the_work_directory_does(folder, trained, tmp_path):
    image = picture(tmp_path / 'image.png')
    (ours,), (theirs,) = (Predictor(model, device='cpu')(image) for model in (
        folder, trained.work_dir))  # fmt: skip
    assert torch.equal(ours.pred_instances.scores, theirs.pred_instances.scores)
    assert torch.equal(ours.pred_instances.bboxes, theirs.pred_instances.bboxes)
    assert tuple(Predictor(folder).classes) == ('disk', 'box', 'star')


@pytest.mark.slow
def test_a_pushed_model_is_used_by_its_name(trained, hub, tmp_path):
    environment, files = hub
    command = [*PUBLISH, trained.checkpoint, tmp_path / 'm', '--push', 'me/model']
    run = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
    assert run.returncode == 0, run.stderr
    assert 'uploaded: http://127.0.0.1' in run.stdout
    assert {'config.py', 'model.safetensors', 'README.md'} <= files.keys()
    code = f"""
from gcvit_mm import Predictor
predictor = Predictor('hub:me/model', device='cpu')
print(len(predictor({picture(tmp_path / 'image.png')!r})), tuple(predictor.classes))
try:
    Predictor('hub:me/nothing')
except RuntimeError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, '-c', code], env=environment, text=True,
                         capture_output=True)  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "1 ('disk', 'box', 'star')" in run.stdout
    assert 'hub:me/nothing cannot be downloaded' in run.stdout


@pytest.mark.parametrize(
    'attack',
    [
        "import os\nos.system('touch PROOF')",
        "x = __import__('os').system('touch PROOF')",
        "x = [dict(a=open('PROOF', 'w'))]",
        "model = dict(type='os.system', command='touch PROOF')",
        "model = dict(type='mmengine.dump', obj=1, file='PROOF')",
        "model = dict(type='subprocess.Popen', args=['touch', 'PROOF'])",
        "model = dict(backbone=[dict(type='mmdet.apis.inference.init_detector')])",
        "custom_imports = dict(imports=['attack'])",
        "model = dict(type='ResNet', _scope_='attack')",
        "model = dict(**open('PROOF', 'w'))",
        'model = (',
        'x = ' + '[' * 500 + ']' * 500,
    ],
)
def test_a_config_that_is_more_than_data_is_refused_and_runs_nothing(
    attack, folder, tmp_path, monkeypatch
):
    proof = tmp_path / 'proof'
    own = tmp_path / 'model'
    own.mkdir()
    os.link(folder / 'model.safetensors', own / 'model.safetensors')
    config = (folder / 'config.py').read_text()
    (own / 'config.py').write_text(f'{config}\n{attack}\n'.replace('PROOF', str(proof)))
    (tmp_path / 'attack.py').write_text(f"open({str(proof)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r'config .*config\.py'):
        Predictor(own)
    assert not proof.exists()


@pytest.mark.parametrize('name', ['dino_gcvit_tiny_tao_coco', 'mask2former_gcvit_tiny_ade20k'])
def test_a_dumped_config_is_plain_and_keeps_its_tuples(name):
    cfg = read_config(name, import_modules=False)
    again = plain_config(cfg.pretty_text, f'{name}.py')
    assert again.to_dict() == cfg.to_dict()


def test_what_cannot_be_published_is_refused(trained, folder, tmp_path):
    error = fail('publish_checkpoint.py', trained.checkpoint, folder)
    assert 'model.safetensors exists' in error and '--force' in error
    error = fail('publish_checkpoint.py', trained.checkpoint, tmp_path / 'x.pth', '--push', 'a/b')
    assert '--push' in error and 'folder' in error
    content = torch.load(trained.checkpoint, weights_only=False)
    content['meta']['cfg'] = 'import os\n'
    torch.save(content, tmp_path / 'epoch_1.pth')
    error = fail('publish_checkpoint.py', tmp_path / 'epoch_1.pth', tmp_path / 'y')
    assert 'epoch_1.pth' in error and 'no dumped config' in error
    assert not list((tmp_path / 'y').iterdir())


def test_torch_hub_builds_backbone_and_predictor(folder, tmp_path):
    load = lambda *a, **k: torch.hub.load(str(ROOT), *a, source='local', trust_repo=True, **k)  # noqa: E731
    assert load('gcvit', 'xxtiny', window_size=8)(torch.zeros(1, 3, 40, 50))[0].shape[1] == 64
    assert load('predictor', str(folder)).classes == ['disk', 'box', 'star']
    assert re.search('torch.hub', (ROOT / 'hubconf.py').read_text())
