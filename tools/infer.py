"""Predict on images, folders of images, and videos."""

import argparse
import hashlib
import os
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from gcvit_mm import Predictor
from gcvit_mm.engine.launch import add_model_arguments, model_of, run
from gcvit_mm.errors import UserError
from gcvit_mm.inference.inputs import Input, find_inputs
from gcvit_mm.inference.model import test_dataset
from gcvit_mm.inference.results import (
    FORMATS,
    Results,
    entry_of,
    write_coco,
    write_csv,
    write_labels,
    write_picture,
)

LEGIBLE = 640
"""Smaller images are drawn enlarged to about this many pixels, for the captions."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_arguments(parser)
    parser.add_argument(
        'inputs',
        nargs='+',
        metavar='INPUT',
        help='image, video, folder (with all folders in it) or pattern',
    )
    parser.add_argument(
        '--out',
        required=True,
        metavar='DIR',
        help='folder for the results; a run that was cut off goes on from what is there',
    )
    parser.add_argument(
        '--format',
        nargs='+',
        choices=sorted({name for names in FORMATS.values() for name in names}),
        help='what to write: pictures (overlay), COCO annotations of a detector (coco), label maps '
        'of a segmenter (png), a table (csv); default: all that the task has',
    )
    parser.add_argument(
        '--score',
        type=float,
        default=0.3,
        help='objects are drawn, and listed in the table, from this score up; default: 0.3',
    )
    parser.add_argument(
        '--tile',
        type=int,
        metavar='PX',
        help='look at larger images in windows of so many pixels a side',
    )
    parser.add_argument(
        '--overlap',
        type=int,
        metavar='PX',
        help='how much neighbouring windows share at least; default: a quarter of a window',
    )
    parser.add_argument(
        '--batch-size', type=int, default=1, help='images that the model takes at once; default: 1'
    )
    parser.add_argument('--device', help='cpu, cuda:1, ...; default: a GPU if there is one')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check(args)
    root, inputs = find_inputs(args.inputs)
    predictor = Predictor(args.model, args.checkpoint, args.device, args.tile, args.overlap)
    formats = formats_of(predictor.task, args.format)
    try:
        results = Results(args.out, settings(args, predictor, formats, root))
        todo = [one for one in inputs if one.file not in results.done]
        failed = Run(predictor, results, formats, args.score, args.batch_size).do(todo)
        finish(results, predictor, formats, args.score, failed)
    except OSError as error:
        raise UserError(f'--out {args.out}: {error}') from error
    report(args.out, inputs, todo, failed)


def check(args: argparse.Namespace) -> None:
    os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')  # failed.txt tells of damaged videos
    if args.batch_size < 1:
        raise UserError(f'--batch-size {args.batch_size}: at least 1')
    if args.overlap is not None and args.tile is None:
        raise UserError('--overlap is of windows: give their size by --tile')
    if args.tile:
        # Pillow refuses what is larger than a scan; who asks for tiles means it.
        Image.MAX_IMAGE_PIXELS = None


def formats_of(task: str, asked: list[str] | None) -> list[str]:
    wrong = [name for name in asked or () if name not in FORMATS[task]]
    if wrong:
        raise UserError(f'--format {wrong[0]}: of {task} there are {", ".join(FORMATS[task])}')
    return sorted(set(asked or FORMATS[task]))


def settings(
    args: argparse.Namespace, predictor: Predictor, formats: list[str], root: Path
) -> dict[str, Any]:
    """What the results depend on: a run with other settings needs another folder."""
    model, pipeline = model_of(predictor.cfg), test_dataset(predictor.cfg).pipeline
    return dict(
        inputs=str(root),
        model=digest(repr((model, pipeline)).encode()),
        checkpoint=digest(Path(predictor.checkpoint).read_bytes()),
        formats=formats,
        score=args.score,
        tile=predictor.tile,
        overlap=predictor.overlap,
    )


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


class Run:
    """Prediction on many inputs, each as it is done put into the results."""

    def __init__(
        self,
        predictor: Predictor,
        results: Results,
        formats: list[str],
        score: float,
        batch_size: int,
    ) -> None:
        self.predictor = predictor
        self.results = results
        self.formats = formats
        self.score = score
        self.batch_size = batch_size
        self.failed: list[str] = []

    def do(self, inputs: list[Input]) -> list[str]:
        """Predict; give a line for each input that could not be read."""
        total = sum(frame_count(one.path) if one.is_video else 1 for one in inputs)
        with tqdm(total=total, unit='image', disable=not inputs) as bar:
            for is_video, some in groupby(inputs, lambda one: one.is_video):
                if is_video:
                    for video in some:
                        self.video(video, bar)
                else:
                    for batch in chunks(some, self.batch_size):
                        self.images(batch)
                        bar.update(len(batch))
        return self.failed

    def images(self, batch: list[Input]) -> None:
        pixels = {}
        for one in batch:
            try:
                pixels[one] = self.predictor.read(one.path)
            except UserError as error:
                self.failed.append(str(error))
        try:
            samples = list(self.predictor.predict(list(pixels.values()), self.batch_size))
        except UserError as error:  # one of them is too small for the model
            if len(batch) == 1:
                self.failed.append(f'{batch[0].path}: {error}')
            else:
                for one in pixels:
                    self.images([one])
            return
        for (one, image), sample in zip(pixels.items(), samples, strict=True):
            if 'overlay' in self.formats:
                write_picture(self.place('overlays', one.name, '.jpg'), self.draw(image, sample))
            self.labels(one.name, sample)
            entry = entry_of(sample, image.shape)
            self.results.add(dict(file=one.file, frame=None, **entry))

    def video(self, one: Input, bar: tqdm) -> None:
        """Frame by frame; a video that was cut off starts anew."""
        writer = None
        number = 0
        partial = self.place('overlays', one.name, '.partial.mp4')
        capture = cv2.VideoCapture(str(one.path))
        for frames in chunks(frames_of(capture), self.batch_size):
            for frame, sample in zip(
                frames, self.predictor.predict(frames, self.batch_size), strict=True
            ):
                if 'overlay' in self.formats:
                    picture = self.draw(frame, sample)
                    writer = writer or open_writer(partial, capture, picture.shape)
                    writer.write(picture[..., ::-1])
                self.labels(f'{one.name}/{number:06d}', sample)
                entry = entry_of(sample, frame.shape)
                self.results.add(dict(file=one.file, frame=number, **entry), done=False)
                number += 1
                bar.update()
        if writer:
            writer.release()
            partial.replace(self.place('overlays', one.name.removesuffix('.mp4'), '.mp4'))
        if number:
            self.results.add(dict(file=one.file))
        else:
            self.failed.append(f'video {one.path} has no frame that can be read')

    def draw(self, image: np.ndarray, sample: Any) -> np.ndarray:
        scale = max(1, LEGIBLE // max(image.shape[:2]))
        return self.predictor.draw(image, sample, self.score, scale)

    def labels(self, name: str, sample: Any) -> None:
        if 'png' in self.formats:
            labels = sample.pred_sem_seg.data[0].numpy()
            write_labels(self.place('maps', name, '.png'), labels, self.predictor.palette)

    def place(self, kind: str, name: str, suffix: str) -> Path:
        return self.results.folder / kind / f'{name}{suffix}'


def chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def frame_count(path: Path) -> int:
    return max(0, int(cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT)))


def frames_of(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while True:
        there, frame = capture.read()
        if not there:
            return
        yield frame


def open_writer(path: Path, capture: cv2.VideoCapture, shape: tuple) -> cv2.VideoWriter:
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = capture.get(cv2.CAP_PROP_FPS) or 25
    code = cv2.VideoWriter.fourcc(*'mp4v')
    writer = cv2.VideoWriter(str(path), code, rate, shape[1::-1])
    if not writer.isOpened():
        raise UserError(f'{path} cannot be written: this OpenCV has no encoder for videos')
    return writer


def finish(
    results: Results, predictor: Predictor, formats: list[str], score: float, failed: list[str]
) -> None:
    """Write what is about all inputs."""
    if 'coco' in formats:
        write_coco(results.folder / 'predictions.json', results, predictor.classes)
    if 'csv' in formats:
        file = results.folder / 'predictions.csv'
        write_csv(file, results, predictor.task, predictor.classes, score)
    listed = results.folder / 'failed.txt'
    if failed:
        listed.write_text('\n'.join(failed) + '\n')
    else:
        listed.unlink(missing_ok=True)


def report(out: str, inputs: list[Input], todo: list[Input], failed: list[str]) -> None:
    before = len(inputs) - len(todo)
    if before:
        print(f'{before} of {len(inputs)} were done before')
    if failed:
        count = f'{len(failed)} of {len(inputs)} could not be read, listed in {out}/failed.txt'
        if len(failed) == len(inputs):
            raise UserError(count)
        print(count)
    print(f'results of {len(inputs) - len(failed)} files in {out}')


if __name__ == '__main__':
    run(main)
