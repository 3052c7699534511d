"""Prediction on many images and videos, behind ``tools/infer.py``."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from ..errors import UserError
from .inputs import Input
from .prediction import Prediction
from .predictor import Predictor, chunks
from .results import Results, entry_of, write_coco, write_csv, write_labels, write_picture

LEGIBLE = 640
"""Smaller images are drawn enlarged to about this many pixels, for the captions."""


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
            prediction = Prediction.of(sample)
            if 'overlay' in self.formats:
                picture = self.draw(image, prediction)
                write_picture(self.place('overlays', one.name, '.jpg'), picture)
            self.labels(one.name, prediction)
            entry = entry_of(prediction, image.shape)
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
                prediction = Prediction.of(sample)
                if 'overlay' in self.formats:
                    picture = self.draw(frame, prediction)
                    writer = writer or open_writer(partial, capture, picture.shape)
                    writer.write(picture[..., ::-1])
                self.labels(f'{one.name}/{number:06d}', prediction)
                entry = entry_of(prediction, frame.shape)
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

    def draw(self, image: np.ndarray, prediction: Prediction) -> np.ndarray:
        scale = max(1, LEGIBLE // max(image.shape[:2]))
        return self.predictor.draw(image, prediction, self.score, scale)

    def labels(self, name: str, prediction: Prediction) -> None:
        if 'png' in self.formats:
            assert prediction.label_map is not None
            file = self.place('maps', name, '.png')
            write_labels(file, prediction.label_map, self.predictor.palette)

    def place(self, kind: str, name: str, suffix: str) -> Path:
        return self.results.folder / kind / f'{name}{suffix}'


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
