"""The page of ``tools/app.py``, in a browser and over HTTP."""

import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from command_line import ENVIRONMENT, ROOT, fail
from gradio_client import Client, handle_file
from mmengine.registry import MODELS
from PIL import Image

from gcvit_mm import Predictor
from gcvit_mm.app.photo import LARGEST, read_photo
from gcvit_mm.app.result import Result, picture, predict, rows, summary
from gcvit_mm.config import default_scope, read_config
from gcvit_mm.errors import UserError

pytest_plugins = ['browser']
MAX_UPLOAD = 1
"""In MB."""
DRAWING = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>'


@contextmanager
def serving(model: Path, temporary: Path):
    """The page at a free port; it must leave nothing behind and end without a traceback."""
    temporary.mkdir()
    command = [sys.executable, 'tools/app.py', model, '--port', 0, '--max-upload', MAX_UPLOAD]
    with open(temporary.with_suffix('.log'), 'w+') as log:
        server = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env={**ENVIRONMENT, 'TMPDIR': str(temporary)},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            lines = iter(server.stdout.readline, '')
            yield next(line.split()[0] for line in lines if line.startswith('http://'))
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
        log.seek(0)
        said = log.read()
    # Gradio's, for requests that no browser sends.
    assert said.count('Traceback') == said.count('InvalidPathError: '), said
    assert server.returncode == 130, said
    assert not list(temporary.glob('gcvit_mm*'))


@pytest.fixture(scope='module')
def address(trained, tmp_path_factory):
    with serving(trained.work_dir, tmp_path_factory.mktemp('app') / 'temporary') as address:
        yield address


@pytest.fixture
def photos(trained, tmp_path):
    """A photo, and files that are none or are larger than what may be uploaded."""
    good = Path(trained.data, 'images/validation/000000.jpg').read_bytes()
    files = {
        'good.jpg': good,
        'text.jpg': b'a text',
        'empty.png': b'',
        'cut.jpg': good[: len(good) // 2],
        'drawing.svg': DRAWING.encode(),
        'large.jpg': good + bytes(MAX_UPLOAD * 2**20),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def said(page) -> str:
    return page.locator('.message').inner_text()


def upload(page, photo: Path) -> str:
    """Upload a file, and give what the page says of it."""
    page.set_input_files('input[type=file]', photo)
    page.locator('.message', has_text=photo.name).wait_for()
    return said(page)


# --- In the browser ---------------------------------------------------------------------------


def test_what_is_found_in_a_photo_is_drawn_and_listed(address, photos, visit):
    visited = visit(address)
    page = visited.page
    message = upload(page, photos / 'good.jpg')
    count = int(message.removeprefix('good.jpg: ').split()[0])
    assert 'with a score of 0.30 or more' in message
    drawn = page.get_by_role('img', name=message)
    drawn.wait_for()
    assert drawn.evaluate('image => image.decode().then(() => image.naturalWidth)') == 800
    assert page.get_by_role('grid', name='Predictions').get_by_role('row').count() == count + 1
    assert all(url.startswith((f'{address}/', 'blob:')) for url in visited.requests)


def test_another_threshold_shows_more_or_less(address, photos, visit):
    page = visit(address).page
    upload(page, photos / 'good.jpg')
    score = page.get_by_label('number input for Minimum score')
    for minimum, start in {
        '0.99': 'No objects with a score of 0.99',
        '0.05': '100 objects',
    }.items():
        score.fill(minimum)
        score.press('Tab')
        page.locator('.message', has_text=f'good.jpg: {start}').wait_for()


def test_files_that_are_no_photos_are_named_and_the_page_goes_on(address, photos, visit):
    page = visit(address).page
    for name in ('text.jpg', 'empty.png', 'cut.jpg', 'drawing.svg'):
        assert 'read' in upload(page, photos / name)
        assert page.get_by_role('alert').inner_text() == said(page)
    assert 'objects with a score' in upload(page, photos / 'good.jpg')


def test_a_photo_that_is_too_large_is_refused(address, photos, visit):
    page = visit(address).page
    page.set_input_files('input[type=file]', photos / 'large.jpg')
    page.get_by_text('exceed the maximum allowed size of 1.0 Mb: "large.jpg"').wait_for()


def test_attention_is_drawn_when_its_tab_is_opened(address, photos, visit):
    page = visit(address).page
    upload(page, photos / 'good.jpg')
    page.get_by_role('tab', name='Attention').click()
    drawn = page.get_by_role('img', name='for good.jpg')
    drawn.wait_for()
    assert drawn.evaluate('image => image.decode().then(() => image.naturalWidth)') == 1600
    page.get_by_label('Remove Image').click()
    page.locator('.message', has_text='Drop an image').wait_for()
    assert page.get_by_role('tab', selected=True).inner_text() == 'Prediction'


# --- Over HTTP --------------------------------------------------------------------------------


def ask(client: Client, model: Path, photo: Path, score: float = 0.3) -> tuple:
    """What the page is answered: the message, and the picture's file."""
    *_, message, image, _ = client.predict(
        handle_file(photo), str(model), score, api_name='/open_photo'
    )
    return message, image


def test_a_program_gets_what_the_browser_gets(address, trained, photos):
    client = Client(address, verbose=False)
    message, image = ask(client, trained.work_dir, photos / 'good.jpg')
    assert 'good.jpg: ' in message
    assert image
    message, image = ask(client, trained.work_dir, photos / 'cut.jpg')
    assert 'cut.jpg cannot be read' in message


def test_nothing_but_uploads_is_read(address, trained, photos):
    upload = f'{address}/gradio_api/upload'
    large = {'files': (photos / 'large.jpg').read_bytes()}
    assert httpx.post(upload, files=large).status_code == 413
    for name in ('/etc/hostname', str(trained.checkpoint), 'https://example.com/', '..'):
        assert httpx.get(f'{address}/gradio_api/file={name}').status_code == 403, name


@pytest.mark.parametrize('stream', [False, True])
def test_a_request_cannot_name_files_or_addresses(stream, address, trained):
    photo = trained.data / 'images/validation/000000.jpg'
    for path in (photo, 'http://example.com/000000.jpg'):
        named = {'path': str(path), 'is_stream': stream, 'meta': {'_type': 'gradio.FileData'}}
        session = f'{path} {stream}'
        asked = {
            'data': [named, str(trained.work_dir), 0.3],
            'fn_index': 0,
            'session_hash': session,
        }
        assert httpx.post(f'{address}/gradio_api/queue/join', json=asked).status_code == 200
        answers = httpx.get(
            f'{address}/gradio_api/queue/data', params={'session_hash': session}, timeout=60
        ).text
        assert 'process_completed' in answers
        assert 'with a score' not in answers


def test_other_sites_cannot_use_the_page(address):
    assert httpx.get(address).status_code == 200
    # A name of theirs that leads here, and a page of theirs that sends a form.
    assert httpx.get(address, headers={'Host': 'example.com'}).status_code == 403
    upload = f'{address}/gradio_api/upload'
    foreign = httpx.post(upload, files={'files': b''}, headers={'Origin': 'http://example.com'})
    assert foreign.status_code == 403
    own = httpx.post(upload, files={'files': b'-'}, headers={'Origin': address})
    assert own.status_code == 200


@pytest.mark.slow
def test_four_at_once_each_get_their_own_answer(trained, tmp_path):
    photos = sorted(Path(trained.data, 'images/validation').glob('*.jpg'))[:4]
    predictor = Predictor(trained.work_dir, device='cpu')
    with serving(trained.work_dir, tmp_path / 'temporary') as address:
        clients = [Client(address, verbose=False) for _ in photos]
        with ThreadPoolExecutor(len(photos)) as pool:
            asked = [
                pool.submit(ask, client, trained.work_dir, photo)
                for _ in range(3)
                for client, photo in zip(clients, photos, strict=True)
            ]
            answers = [answer.result() for answer in asked]
    for i, (message, _) in enumerate(answers):
        photo = photos[i % len(photos)]
        found = predict(predictor, photo.name, read_photo(photo))
        assert f'{photo.name}: {summary(predictor, found, 0.3)}' in message


# --- On the command line ----------------------------------------------------------------------


def test_a_port_in_use_is_named(trained):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        error = fail('app.py', trained.work_dir, '--port', port)
    assert f'127.0.0.1, port {port}' in error
    assert '--port' in error


def test_one_checkpoint_for_two_models_is_refused(trained):
    two = (trained.work_dir, 'gcvit_tiny_imagenet')
    error = fail('app.py', *two, '--checkpoint', trained.checkpoint)
    assert '--checkpoint needs a single MODEL' in error


# --- Photos and tables ------------------------------------------------------------------------


def test_photos_of_all_kinds_are_read_alike(tmp_path):
    pixels = np.full((40, 60, 3), 90, np.uint8)
    photo = Image.fromarray(pixels)
    sideways = photo.getexif()
    sideways[274] = 6  # turn it by a quarter
    photo.convert('CMYK').save(tmp_path / 'cmyk.jpg')
    photo.convert('RGBA').save(tmp_path / 'alpha.png')
    photo.save(tmp_path / 'animated.gif', save_all=True, append_images=[Image.new('RGB', (60, 40))])
    Image.fromarray(pixels[..., 0].astype(np.uint16) << 8).save(tmp_path / '16 bits.png')
    photo.rotate(90, expand=True).save(tmp_path / 'sideways.jpg', exif=sideways)
    for path in tmp_path.iterdir():
        read = read_photo(path)
        assert (read.mode, read.size) == ('RGB', (60, 40)), path
        np.testing.assert_allclose(np.asarray(read), pixels, atol=3, err_msg=path.name)


def test_large_photos_are_made_smaller_and_enormous_ones_refused(tmp_path):
    Image.new('L', (4000, 1000)).save(tmp_path / 'large.jpg')
    assert read_photo(tmp_path / 'large.jpg').size == (LARGEST, 400)
    for side in (9000, 20000):  # the file of the second has 50 kB
        Image.new('1', (side, side)).save(tmp_path / 'enormous.png')
        with pytest.raises(UserError, match=r'enormous\.png has too many pixels'):
            read_photo(tmp_path / 'enormous.png')


def test_a_model_that_does_not_take_the_photo_says_so(tmp_path):
    from gcvit_mm.app.page import build_page

    class FourChannels:
        task, classes, palette = 'segmentation', ['a'], [(0, 0, 0)]

        def __call__(self, image):
            raise UserError('the model takes 4')

    Image.new('RGB', (60, 40)).save(tmp_path / 'photo.png')
    functions = {one.name: one.fn for one in build_page({'four': FourChannels()}).fns.values()}
    before = Result('photo', Image.new('RGB', (60, 40)), None)
    for shown in (
        functions['open_photo']({'path': str(tmp_path / 'photo.png')}, 'four', 0.3),
        functions['change_model'](before, 'four', 0.3),
    ):
        assert shown[1] is None  # no result of another model remains
        assert 'class="message error"' in shown[3] and 'the model takes 4' in shown[3]


@pytest.mark.parametrize('name', ['upernet_gcvit_nano_shapes', 'gcvit_xxtiny_imagenet'])
def test_label_maps_and_classes_are_listed(name, tiny_shapes, tmp_path):
    cfg = read_config(name)
    with default_scope(cfg):
        torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, tmp_path / 'weights.pth')
    predictor = Predictor(name, tmp_path / 'weights.pth', 'cpu')
    photo = read_photo(tiny_shapes / 'images/validation/000000.jpg')
    found = predict(predictor, 'photo', photo)
    table = rows(predictor, found, 0.3)
    names, shares = zip(*[row[-2:] for row in table], strict=True)
    assert set(names) <= set(predictor.classes)
    assert list(shares) == sorted(shares, reverse=True)
    assert names[0] in summary(predictor, found, 0.3)
    drawn = picture(predictor, found, 0.3)
    if predictor.task == 'segmentation':
        assert sum(shares) == pytest.approx(100, abs=0.5)
        assert drawn.shape == (800, 800, 3)
    else:
        assert len(table) == 5
        np.testing.assert_array_equal(drawn, photo)
