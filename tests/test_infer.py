"""``Predictor`` and ``tools/infer.py``: the predictions of ``tools/test.py``, for any image."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from command_line import ENVIRONMENT, NANO, ROOT, VAL_IMAGES, fail, on, succeed
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmengine.runner import CheckpointLoader
from mmengine.structures import PixelData
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from reference import write_official

from gcvit_mm import Predictor
from gcvit_mm.errors import UserError
from gcvit_mm.export import runner
from gcvit_mm.inference.inputs import find_inputs, result_names
from gcvit_mm.inference.results import Results
from gcvit_mm.inference.run import Run, finish
from gcvit_mm.work_dir import config_in


@pytest.fixture(scope='module')
def detector(trained):
    return Predictor(trained.work_dir)


@pytest.fixture(scope='module')
def photos(tiny_shapes):
    return sorted((tiny_shapes / 'images/validation').glob('*.jpg'))


@pytest.fixture(scope='module')
def segmenter_files(tmp_path_factory):
    """The config of a nano UPerNet and random weights."""
    file = tmp_path_factory.mktemp('segmenter') / 'random.pth'
    config = ROOT / 'configs/upernet_gcvit_nano_shapes.py'
    init_default_scope('mmseg')
    torch.manual_seed(0)
    torch.save(MODELS.build(Config.fromfile(config).model).state_dict(), file)
    return config, file


@pytest.fixture(scope='module')
def segmenter(segmenter_files):
    return Predictor(*segmenter_files)


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    """A classifier of the zoo by its name alone, with an official file as its weights."""
    folder = tmp_path_factory.mktemp('checkpoints')
    write_official(folder / 'gcvit_1k_xxtiny.pth.tar', 'xxtiny')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('GCVIT_MM_CHECKPOINTS', str(folder))
        return Predictor('gcvit_xxtiny_imagenet')


def same(one, other):
    """Whether two detections are equal to the last bit."""
    return all(torch.equal(one.pred_instances[k], other.pred_instances[k]) for k in FIELDS)


FIELDS = 'bboxes', 'scores', 'labels', 'masks'


# --- From Python ------------------------------------------------------------------------------


def test_a_file_its_pixels_and_its_pillow_image_are_predicted_alike(detector, photos):
    sample = detector(photos[0])[0]
    assert len(sample.pred_instances)
    assert sample.img_path == str(photos[0])
    # Both read a JPEG by the same library.
    pixels = np.asarray(Image.open(photos[0]))[..., ::-1]
    assert same(sample, detector(pixels)[0])
    assert same(sample, detector([Image.open(photos[0])])[0])


def test_a_predictor_leaves_the_process_as_it_was(trained, photos):
    def state():
        return (
            dict(CheckpointLoader._schemes),
            getattr(DefaultScope.get_current_instance(), 'scope_name', None),
            Image.MAX_IMAGE_PIXELS,
            warnings.filters[:],
            torch.is_grad_enabled(),
            torch.get_num_threads(),
            np.random.get_state()[1].tolist(),
        )

    before = state()
    Predictor(trained.work_dir)(photos)
    assert state() == before


def test_predictions_do_not_depend_on_what_else_is_in_the_batch(detector, photos):
    wide = np.zeros((48, 100, 3), np.uint8)
    mixed = detector([str(photos[0]), wide, photos[1], photos[2]], batch_size=4)
    assert [sample.ori_shape for sample in mixed] == [(64, 64), (48, 100), (64, 64), (64, 64)]
    for sample, image in zip(mixed, [photos[0], wide, photos[1], photos[2]], strict=True):
        alone = detector(image)[0].pred_instances
        assert torch.allclose(sample.pred_instances.bboxes, alone.bboxes, atol=1e-3)
        assert torch.equal(sample.pred_instances.labels, alone.labels)


def test_batches_of_no_given_size_hold_eight_small_images(detector, photos):
    images = [str(photos[i % len(photos)]) for i in range(9)]
    sizes: list[int] = []
    note = detector.model.backbone.register_forward_pre_hook(
        lambda _, inputs: sizes.append(len(inputs[0]))
    )
    found = detector(images, batch_size=None)
    note.remove()
    assert sizes == [8, 1]
    for sample, image in zip(found, images, strict=True):
        alone = detector(image)[0].pred_instances
        assert torch.allclose(sample.pred_instances.bboxes, alone.bboxes, atol=1e-3)
        assert torch.equal(sample.pred_instances.labels, alone.labels)


def test_threads_share_a_predictor(detector, photos):
    expected = detector(photos)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda path: detector(path)[0], [*photos] * 3))
        pictures = list(pool.map(lambda i: detector.draw(photos[i], expected[i]), [0, 1] * 6))
    assert all(same(*pair) for pair in zip(found, expected * 3, strict=True))
    for i, picture in enumerate(pictures):
        assert np.array_equal(picture, detector.draw(photos[i % 2], expected[i % 2]))


@pytest.mark.parametrize('mode', ['L', 'P', 'RGBA', 'LA', '1', 'CMYK', 'I;16'])
def test_pillow_images_of_any_mode_are_read_as_their_files(mode, detector, photos, tmp_path):
    image = Image.open(photos[0])
    image = image.convert('L').convert('I').convert(mode) if mode == 'I;16' else image.convert(mode)
    file = tmp_path / ('image.tif' if mode == 'CMYK' else 'image.png')
    image.save(file)
    assert np.array_equal(detector.read(file), detector.read(image))


def test_an_image_of_16_bits_is_not_white(detector, tmp_path):
    gradient = np.arange(0, 2**16, 2**10, dtype=np.uint16).repeat(64).reshape(64, 64)
    Image.fromarray(gradient).save(tmp_path / 'xray.png')
    assert np.array_equal(detector.read(tmp_path / 'xray.png'), cv2.imread(tmp_path / 'xray.png'))


def test_a_photo_that_its_camera_turned_is_upright(detector, tmp_path):
    image = Image.fromarray(np.zeros((40, 70, 3), np.uint8))
    turned = image.getexif()
    turned[0x112] = 6
    image.save(tmp_path / 'turned.jpg', exif=turned)
    assert detector(tmp_path / 'turned.jpg')[0].ori_shape == (70, 40)
    assert detector(Image.open(tmp_path / 'turned.jpg'))[0].ori_shape == (70, 40)


@pytest.mark.parametrize(
    'array', [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3)), np.zeros((0, 9, 3), np.uint8)]
)
def test_arrays_that_are_no_images_are_refused(array, detector):
    with pytest.raises(UserError, match=r'pass (uint8|images like)'):
        detector(array)


def test_a_classifier_of_the_zoo_takes_its_official_weights(classifier, photos):
    assert classifier.task == 'classification'
    assert classifier.classes[1] == 'goldfish, Carassius auratus'
    assert classifier.model.data_preprocessor.mean.flatten().tolist() == pytest.approx(
        [123.675, 116.28, 103.53]
    )
    score = classifier(photos[0])[0].pred_score
    assert score.shape == (1000,)
    assert score.sum() == pytest.approx(1, abs=1e-4)
    assert classifier.draw(photos[0], classifier(photos[0])[0]).shape == (64, 64, 3)


def test_a_classifier_normalises_images_as_it_was_trained(classifier):
    """By hand: the resized and cropped image in RGB, mean and deviation of ImageNet."""
    image = np.random.default_rng(0).integers(0, 256, (300, 260, 3), np.uint8)
    pixels = classifier.pipeline.prepare(image)['inputs'].flip(0).permute(1, 2, 0) / 255
    normal = (pixels - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = classifier.model(normal.permute(2, 0, 1)[None]).softmax(1)[0]
    assert torch.allclose(classifier(image)[0].pred_score, expected, atol=1e-6)


def test_a_segmenter_has_the_classes_of_its_config_and_draws_in_their_colors(segmenter, photos):
    assert (segmenter.task, segmenter.has_masks) == ('segmentation', False)
    assert segmenter.classes == ['background', 'disk', 'box', 'star']
    assert segmenter.palette[1] == (0, 230, 255)
    sample = segmenter(photos[0])[0]
    sample.pred_sem_seg.data = torch.ones_like(sample.pred_sem_seg.data)
    black = np.zeros((64, 64, 3), np.uint8)
    assert segmenter.draw(black, sample)[0, 0].tolist() == [0, 115, 128]


def test_a_moving_average_is_taken_where_there_is_one(trained, detector, tmp_path):
    content = torch.load(trained.checkpoint, weights_only=False)
    average = {name: 2 * value for name, value in content['state_dict'].items()}
    # As mmengine's EMAHook saves: the average in the place of the weights.
    content['ema_state_dict'], content['state_dict'] = content['state_dict'], average
    torch.save(content, tmp_path / 'ema.pth')
    loaded = Predictor(trained.work_dir, tmp_path / 'ema.pth').model.state_dict()
    name = 'backbone.stem.conv.weight'
    assert torch.equal(loaded[name], 2 * detector.model.state_dict()[name])


def test_the_best_checkpoint_of_a_work_folder_is_taken_unless_it_is_damaged(trained, tmp_path):
    work = Path(shutil.copytree(trained.work_dir, tmp_path / 'work'))
    assert Predictor(work).checkpoint == str(work / 'epoch_1.pth')
    best = Path(shutil.copy(work / 'epoch_1.pth', work / 'best_coco_bbox_mAP_epoch_1.pth'))
    assert Predictor(work).checkpoint == str(best)
    best.write_bytes(best.read_bytes()[:-100])
    assert Predictor(work).checkpoint == str(work / 'epoch_1.pth')


def wrong_models(trained, tmp_path):
    (tmp_path / 'empty').mkdir()
    torch.save({'fc.weight': torch.zeros(3)}, tmp_path / 'foreign.pth')
    several = Path(shutil.copytree(trained.work_dir, tmp_path / 'several'))
    (several / 'other.py').write_text('model = dict()\n')
    (tmp_path / 'none.py').write_text("default_scope = 'mmengine'\n")
    return {
        'mask_rcnn_gcvit_nano_shapes needs a checkpoint': [NANO.removesuffix('.py')[8:]],
        'did you mean': ['mask_rcnn_gcvit_nano_shape'],
        'has no config': [tmp_path / 'empty'],
        'several/other.py has default_scope None': [several],
        'does not fit the model': [NANO, tmp_path / 'foreign.pth'],
        'does not exist': [NANO, tmp_path / 'absent.pth'],
        'must have a model of mmdet': [tmp_path / 'none.py', trained.checkpoint],
        'device nonsense cannot be used': [NANO, trained.checkpoint, 'nonsense'],
        'overlap 64 does not fit': [NANO, trained.checkpoint, None, 64, 64],
    }


def test_a_model_that_cannot_be_had_is_answered_with_what_to_do(trained, tmp_path):
    for message, arguments in wrong_models(trained, tmp_path).items():
        with pytest.raises(UserError, match=message.split()[0]) as error:
            Predictor(*arguments)
        assert message.split('needs')[-1] in str(error.value)
        assert '\n' not in str(error.value)


def test_importing_the_package_imports_none_of_the_three():
    code = (
        'import sys, gcvit_mm; assert "Predictor" in gcvit_mm.__all__; '
        'assert not {"mmdet", "mmseg", "mmpretrain"} & set(sys.modules)'
    )
    subprocess.run([sys.executable, '-c', code], check=True, env=ENVIRONMENT)


# --- Tiles ------------------------------------------------------------------------------------


def test_a_large_image_in_tiles_has_the_objects_of_its_parts(trained, photos):
    """Where the windows are just the parts of a mosaic, and objects keep off their borders."""
    tiled = Predictor(trained.work_dir, tile=64, overlap=1)
    row = np.hstack([tiled.read(photos[0]), np.zeros((64, 62, 3), np.uint8)])
    found = tiled(row)[0].pred_instances
    first = tiled(np.ascontiguousarray(row[:, :64]))[0].pred_instances
    inside = first[first.bboxes[:, 2] < 60]
    assert len(inside)
    for box, score in zip(inside.bboxes, inside.scores, strict=True):
        near = (found.bboxes - box).abs().sum(1) < 1e-3
        assert torch.isclose(found.scores[near], score).any()
    assert all(rle['size'] == [64, 126] for rle in found.masks)


class PixelSegmenter:
    """Scores each pixel by its own colour: what a window shows of it makes no difference."""

    @staticmethod
    def test_step(data):
        for image, sample in zip(data['inputs'], data['data_samples'], strict=True):
            sample.seg_logits = PixelData(data=image.float())
        return data['data_samples']


def test_label_maps_of_windows_that_agree_are_put_together_unchanged(segmenter_files):
    tiled = Predictor(*segmenter_files, tile=40, overlap=9)
    tiled.model = PixelSegmenter
    image = np.random.default_rng(0).integers(0, 256, (101, 150, 3), np.uint8)
    labels = tiled(image, batch_size=3)[0].pred_sem_seg.data[0].numpy()
    assert np.array_equal(labels, image.argmax(2))


def test_a_classifier_takes_no_tiles(trained, tmp_path):
    with pytest.raises(UserError, match=r'tile 64 .*classifier'):
        Predictor('gcvit_xxtiny_imagenet', trained.checkpoint, tile=64)


# --- tools/infer.py ---------------------------------------------------------------------------


def test_a_detector_finds_what_the_evaluation_finds(trained, photos, tmp_path):
    succeed('test.py', NANO, trained.checkpoint, '--work-dir', tmp_path / 'work', '--out',
            tmp_path / 'truth', *on(trained.data))  # fmt: skip
    out = tmp_path / 'out'
    succeed('infer.py', trained.work_dir, photos[0].parent, '--out', out, '--batch-size', 5)
    found = json.loads((out / 'predictions.json').read_text())
    numbers = {image['id']: image['file_name'] for image in found['images']}
    assert list(numbers.values()) == [photo.name for photo in photos]
    annotations = COCO(trained.data / 'annotations/instances_validation.json')
    files = {number: image['file_name'] for number, image in annotations.imgs.items()}
    names = [category['name'] for category in annotations.loadCats(annotations.getCatIds())]
    assert [category['name'] for category in found['categories']] == names
    for kind, content in {'bbox': 'bbox', 'segm': 'segmentation'}.items():
        expected = json.loads((tmp_path / f'truth.{kind}.json').read_text())
        assert expected
        assert sorted(
            (numbers[one['image_id']], one['score'], str(one[content]))
            for one in found['annotations']
        ) == sorted((files[one['image_id']], one['score'], str(one[content])) for one in expected)
    check_the_documented_evaluation(annotations, found, tmp_path / 'truth.metrics.json')
    for photo in photos:
        assert cv2.imread(str(out / 'overlays' / photo.name)).shape == (640, 640, 3)
    rows = list(csv.DictReader((out / 'predictions.csv').open()))
    assert len(rows) == sum(one['score'] >= 0.3 for one in found['annotations'])


def check_the_documented_evaluation(annotations, found, metrics):
    """As docs/inference.md says it is done."""
    image = {one['file_name']: number for number, one in annotations.imgs.items()}
    category = {one['name']: number for number, one in annotations.cats.items()}
    images = {one['id']: image[one['file_name']] for one in found['images']}
    categories = {one['id']: category[one['name']] for one in found['categories']}
    for one in found['annotations']:
        one['image_id'] = images[one['image_id']]
        one['category_id'] = categories[one['category_id']]
    evaluation = COCOeval(annotations, annotations.loadRes(found['annotations']), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    expected = json.loads(metrics.read_text())['coco/bbox_mAP']
    assert evaluation.stats[0] == pytest.approx(expected, abs=1e-3)


@pytest.fixture(scope='module')
def mixed(photos, tmp_path_factory):
    """Images of one name in several folders, a video, and files that are no images."""
    folder = tmp_path_factory.mktemp('mixed')
    for place in ('a/photo.jpg', 'b/photo.jpg', 'b/deep/photo.jpg'):
        (folder / place).parent.mkdir(exist_ok=True)
        shutil.copy(photos[0], folder / place)
    Image.open(photos[1]).save(folder / 'b/photo.png')
    Image.open(photos[1]).convert('L').save(folder / 'gray.png')
    writer = cv2.VideoWriter(
        str(folder / 'clip.avi'), cv2.VideoWriter.fourcc(*'MJPG'), 10, (64, 64)
    )
    for photo in photos:
        writer.write(cv2.imread(str(photo)))
    writer.release()
    (folder / 'cut.jpg').write_bytes(photos[0].read_bytes()[:700])
    (folder / 'page.png').write_text('<html>')
    (folder / 'empty.mp4').write_bytes(b'')
    (folder / 'notes.txt').write_text('not an image at all')
    return folder


def test_a_folder_of_everything_is_predicted_and_what_is_no_image_is_listed(
    trained, mixed, tmp_path
):
    out = tmp_path / 'out'
    output = succeed('infer.py', trained.work_dir, mixed, '--out', out)
    assert f'3 of 9 files failed: see {out}/failed.txt' in output
    failed = (out / 'failed.txt').read_text()
    assert all(name in failed for name in ('cut.jpg', 'page.png', 'empty.mp4'))
    pictures = {str(path.relative_to(out / 'overlays')) for path in out.rglob('overlays/**/*.*')}
    assert pictures == {
        'a/photo.jpg', 'b/photo.jpg.jpg', 'b/photo.png.jpg', 'b/deep/photo.jpg', 'gray.jpg',
        'clip.avi.mp4',
    }  # fmt: skip
    video = cv2.VideoCapture(str(out / 'overlays/clip.avi.mp4'))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == VAL_IMAGES
    images = json.loads((out / 'predictions.json').read_text())['images']
    frames = [image['frame'] for image in images if image['file_name'] == 'clip.avi']
    assert frames == list(range(VAL_IMAGES))
    assert len(images) == 5 + VAL_IMAGES
    before = (out / 'predictions.json').read_bytes()
    lines = (out / 'results.jsonl').read_bytes().splitlines(keepends=True)
    # As a machine that is switched off leaves it: within the video, and within a line.
    (out / 'results.jsonl').write_bytes(b''.join(lines[:6]) + lines[6][:20])
    (out / 'predictions.json').unlink()
    again = succeed('infer.py', trained.work_dir, mixed, '--out', out)
    assert '4 of 9 files were done' in again
    assert (out / 'predictions.json').read_bytes() == before
    settings = json.loads((out / 'run.json').read_text())
    with pytest.raises(UserError, match=r'score was 0.3, is 0.5\): give another folder'):
        Results(out, {**settings, 'score': 0.5})


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_stopped_goes_on_to_the_same_results(number, trained, photos, tmp_path):
    folder, times = tmp_path / 'images', 9
    for i in range(times):
        shutil.copytree(photos[0].parent, folder / str(i))
    arguments = [trained.work_dir, folder, '--format', 'coco']
    out = tmp_path / 'out'
    command = [sys.executable, 'tools/infer.py', *map(str, [*arguments, '--out', out])]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE)
    lines = out / 'results.jsonl'
    while not lines.exists() or lines.read_bytes().count(b'\n') < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    errors = process.communicate()[1]
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert b'Traceback' not in errors
    before = lines.read_bytes().count(b'\n')
    assert 3 <= before < times * VAL_IMAGES
    with lines.open('ab') as file:
        file.write(b'{"file": "cut o')  # as a machine that is switched off leaves it
    output = succeed('infer.py', *arguments, '--out', out)
    assert f'{before} of {times * VAL_IMAGES} files were done' in output
    whole = Predictor(trained.work_dir)
    found = json.loads((out / 'predictions.json').read_text())
    assert [image['file_name'] for image in found['images']] == [
        f'{i}/{photo.name}' for i in range(times) for photo in photos
    ]
    expected = torch.cat([sample.pred_instances.scores for sample in whole(photos)] * times)
    assert [one['score'] for one in found['annotations']] == expected.tolist()


def test_label_maps_hold_the_classes_and_their_shares_are_listed(
    segmenter, segmenter_files, photos, tmp_path
):
    config, file = segmenter_files
    folder, out = photos[0].parent, tmp_path / 'out'
    succeed('infer.py', config, folder, '--checkpoint', file, '--out', out, '--tile', 48)
    tiled = Predictor(config, file, tile=48)
    shares = list(csv.DictReader((out / 'predictions.csv').open()))
    for photo in photos:
        map_ = Image.open(out / f'maps/{photo.stem}.png')
        labels = np.array(map_)
        assert np.array_equal(labels, tiled(photo)[0].pred_sem_seg.data[0])
        assert map_.getpalette()[:12] == np.ravel(segmenter.palette).tolist()
        for row in shares:
            if row['file'] == photo.name:
                label = segmenter.classes.index(row['class'])
                assert float(row['share']) == pytest.approx((labels == label).mean(), abs=1e-6)
    assert {row['file'] for row in shares} == {photo.name for photo in photos}


def test_inputs_are_found_once_whichever_way_they_are_named(mixed, tmp_path):
    every = [mixed / 'a/photo.jpg', mixed / 'b/deep/photo.jpg', mixed / 'b/photo.jpg']
    for arguments in ([mixed / '**/*.jpg'], [mixed / 'a', mixed / 'b/**/*.jpg'], [*every, *every]):
        root, found = find_inputs([str(argument) for argument in arguments])
        assert root == mixed
        assert [one.path for one in found if one.path.name != 'cut.jpg'] == every
        assert len({one.name for one in found}) == len(found)
    with pytest.raises(UserError, match=r'absent names no image.*\.jpg'):
        find_inputs([str(tmp_path / 'absent')])


def test_linked_folders_are_searched_but_not_in_circles(tmp_path):
    for place in ('photos/a.png', 'disk/b.png', 'disk/.thumbnails/c.png'):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    photos = tmp_path / 'photos'
    (photos / 'linked').symlink_to(tmp_path / 'disk')
    for name in ('self', 'again'):  # each level would have twice as many folders
        (photos / name).symlink_to(photos)
        (tmp_path / 'disk' / name).symlink_to(photos)
    (photos / 'gone').symlink_to(tmp_path / 'nowhere')
    found = find_inputs([str(photos)])[1]
    assert [one.file for one in found] == ['a.png', 'linked/.thumbnails/c.png', 'linked/b.png']
    found = find_inputs([str(photos / '**/*.png')])[1]
    assert [one.file for one in found] == ['a.png', 'linked/b.png']
    assert [one.file for one in find_inputs([str(photos / '*/b.png')])[1]] == ['linked/b.png']
    (linked,) = find_inputs([str(photos / '**/linked/**')])[1]
    assert linked.file == 'linked/b.png'


def test_results_of_files_with_one_stem_have_names_of_their_own():
    files = ['a.png', 'a.jpg', 'a.png.jpg', 'b/a.png', 'c.tif', 'c.avi', 'd', 'd.bmp']
    names = result_names(map(Path, files))
    assert list(names.values()) == [
        'a.png', 'a.jpg', 'a.png.jpg', 'b/a', 'c.tif', 'c.avi', 'd', 'd.bmp'
    ]  # fmt: skip


def test_frames_that_a_video_lacks_are_reported_and_tried_again(trained, photos, tmp_path):
    folder, out = tmp_path / 'videos', tmp_path / 'out'
    folder.mkdir()
    for name in ('cut.avi', 'whole.avi', 'whole.avi.mp4'):
        code = 'mp4v' if name.endswith('mp4') else 'MJPG'
        writer = cv2.VideoWriter(str(folder / name), cv2.VideoWriter.fourcc(*code), 10, (64, 64))
        for photo in 3 * photos[:2]:
            writer.write(cv2.imread(str(photo)))
        writer.release()
    whole = (folder / 'cut.avi').read_bytes()
    (folder / 'cut.avi').write_bytes(whole[: len(whole) // 2])
    predictor = Predictor(trained.work_dir)

    def infer():
        results = Results(out, {})
        inputs = [one for one in find_inputs([str(folder)])[1] if one.file not in results.done]
        failed = Run(predictor, results, ['csv', 'overlay'], 0.3, 2).do(inputs)
        finish(results, predictor, ['csv'], 0.3, failed)
        return [one.file for one in inputs], failed, [entry['file'] for entry in results]

    tried, failed, entries = infer()
    assert len(tried) == 3
    (message,) = failed
    read = entries.count('cut.avi')
    assert f'cut.avi: {read} of 6 frames could be read' in message
    assert 0 < read < 6 and entries.count('whole.avi') == 6
    assert (out / 'failed.txt').read_text() == f'{message}\n'
    assert {path.name for path in (out / 'overlays').iterdir()} == {
        'cut.avi.mp4', 'whole.avi.mp4', 'whole.avi.mp4.mp4'
    }  # fmt: skip
    assert infer() == (['cut.avi'], failed, sorted(entries, key=lambda file: file == 'cut.avi'))
    (folder / 'cut.avi').write_bytes(whole)
    tried, failed, entries = infer()
    assert (tried, failed, entries.count('cut.avi')) == (['cut.avi'], [], 6)


@pytest.fixture(scope='module')
def four_channels(tmp_path_factory):
    """A segmenter with random weights of images with four channels: config and checkpoint."""
    folder = tmp_path_factory.mktemp('four channels')
    base = ROOT / 'configs/upernet_gcvit_nano_shapes.py'
    (folder / 'config.py').write_text(f"""
_base_ = {str(base)!r}
load = dict(type='LoadWholeImage', color_type='unchanged')
pipeline = [load, dict(type='PackSegInputs')]
model = dict(data_preprocessor=dict(mean=[127.0], std=[60.0]), backbone=dict(in_channels=4))
test_dataloader = dict(dataset=dict(pipeline=pipeline))
""")
    cfg = Config.fromfile(folder / 'config.py')
    with DefaultScope.overwrite_default_scope('mmseg'):
        torch.save(MODELS.build(cfg.model).state_dict(), folder / 'random.pth')
    return folder / 'config.py', folder / 'random.pth'


def test_a_model_of_four_channels_takes_files_arrays_and_pillow_images(four_channels, tmp_path):
    predictor = Predictor(*four_channels)
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 4), np.uint8)
    image = Image.fromarray(values, 'RGBA')
    (tmp_path / 'images').mkdir()
    image.save(tmp_path / 'images/a.png')
    bgr = values[..., [2, 1, 0, 3]]
    labels = [
        predictor(given)[0].pred_sem_seg.data for given in (tmp_path / 'images/a.png', image, bgr)
    ]
    assert torch.equal(labels[0], labels[1]) and torch.equal(labels[0], labels[2])
    sample = predictor(bgr)[0]
    assert np.array_equal(predictor.draw(bgr, sample), predictor.draw(bgr[..., :3], sample))
    for wrong in (values[..., :3], image.convert('L')):
        with pytest.raises(UserError, match=r'has [13] channel\(s\), but the model takes 4'):
            predictor(wrong)
    image.convert('RGB').save(tmp_path / 'images/b.png')
    config, checkpoint = four_channels
    out = '--checkpoint', checkpoint, '--out', tmp_path / 'out'
    output = succeed('infer.py', config, tmp_path / 'images', *out)
    assert '1 of 2 files failed' in output
    assert 'b.png: the image has 3 channel(s)' in (tmp_path / 'out/failed.txt').read_text()
    assert (tmp_path / 'out/overlays/a.jpg').is_file()


def test_programs_in_a_work_directory_are_not_its_config(trained, tmp_path):
    work = tmp_path / 'work'
    shutil.copytree(trained.work_dir, work)
    (work / 'model_onnx.py').write_text(runner.source('detection', 'model.onnx'))
    assert config_in(work).name == Path(NANO).name


@pytest.mark.slow
def test_a_model_of_four_channels_is_exported(four_channels, tmp_path):
    config, checkpoint = four_channels
    succeed('export.py', config, '--checkpoint', checkpoint, '--out', tmp_path / 'x.pt2')
    assert (tmp_path / 'x.pt2').is_file()


def test_a_run_in_which_nothing_could_be_read_fails(trained, tmp_path):
    (tmp_path / 'bad.png').write_text('no')
    out = tmp_path / 'out'
    error = fail('infer.py', trained.work_dir, tmp_path / 'bad.png', '--out', out)
    assert f'1 of 1 files failed: see {out}/failed.txt' in error
