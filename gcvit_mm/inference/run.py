"""Inference on many images and videos, for ``tools/infer.py``."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from ..errors import UserError
from .inputs import Input
from .prediction import Prediction
from .predictor import MOST_IMAGES, Predictor, chunks
from .results import Results, entry_of, write_coco, write_csv, write_labels, write_picture

Item = TypeVar('Item')
Result = TypeVar('Result')

LEGIBLE = 640
"""Smaller images are enlarged to about this many pixels, for legible captions."""


@dataclass
class Run:
    """Predicts on inputs, and saves the results of each one."""

    predictor: Predictor
    results: Results
    formats: list[str]
    score: float
    batch_size: int | None  # None lets the predictor choose
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.at_once = self.batch_size or MOST_IMAGES

    def do(self, inputs: list[Input]) -> list[str]:
        """Predict on inputs, and return an error message for each unreadable one."""
        total = sum(frame_count(item.path) if item.is_video else 1 for item in inputs)
        with tqdm(total=total, unit='image', disable=not inputs) as bar:
            for is_video, group in groupby(inputs, lambda item: item.is_video):
                if is_video:
                    for video in group:
                        self.video(video, bar)
                else:
                    self.images(chunks(group, self.at_once), bar)
        return self.failed

    def images(self, batches: Iterable[list[Input]], bar: tqdm) -> None:
        """Predict on images; threads read the next ones and save the results of the last ones."""
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            saving: deque[Future] = deque()
            for count, pixels in ahead(reader, self.read, batches):
                for found in self.predict(pixels):
                    saving.append(writer.submit(self.save, *found))
                bar.update(count)
                while len(saving) > self.at_once:
                    saving.popleft().result()
            for saved in saving:
                saved.result()

    def read(self, batch: list[Input]) -> tuple[int, dict[Input, np.ndarray]]:
        pixels = {}
        for item in batch:
            try:
                pixels[item] = self.predictor.read(item.path)
            except UserError as error:
                self.failed.append(str(error))
        return len(batch), pixels

    def predict(self, pixels: dict[Input, np.ndarray]) -> Iterator[tuple[Input, np.ndarray, Any]]:
        try:
            samples = list(self.predictor.predict(list(pixels.values()), self.batch_size))
        except UserError as error:  # an image of the batch is too small for the model
            if len(pixels) == 1:
                self.failed.append(f'{next(iter(pixels)).path}: {error}')
            else:
                for item, image in pixels.items():
                    yield from self.predict({item: image})
            return
        for (item, image), sample in zip(pixels.items(), samples, strict=True):
            yield item, image, sample

    def save(self, item: Input, image: np.ndarray, sample: Any) -> None:
        prediction = Prediction.of(sample)
        if 'overlay' in self.formats:
            picture = self.draw(image, prediction)
            write_picture(self.place('overlays', item.name, '.jpg'), picture)
        self.labels(item.name, prediction)
        entry = entry_of(prediction, image.shape)
        self.results.add(dict(file=item.file, frame=None, **entry))

    def video(self, item: Input, bar: tqdm) -> None:
        """Predict on the frames of a video; an interrupted video starts from its first frame."""
        writer, number, problem = None, 0, ''
        partial = self.place('overlays', item.name, '.partial.mp4')
        capture = cv2.VideoCapture(str(item.path))
        for frames in chunks(frames_of(capture), self.at_once):
            try:
                samples = list(self.predictor.predict(frames, self.batch_size))
            except UserError as error:  # the model does not take such frames
                problem = str(error)
                break
            for frame, sample in zip(frames, samples, strict=True):
                prediction = Prediction.of(sample)
                if 'overlay' in self.formats:
                    picture = self.draw(frame, prediction)
                    writer = writer or open_writer(partial, capture, picture.shape)
                    writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
                self.labels(f'{item.name}/{number:06d}', prediction)
                entry = entry_of(prediction, frame.shape)
                self.results.add(dict(file=item.file, frame=number, **entry), done=False)
                number += 1
                bar.update()
        if writer:
            writer.release()
            # clip.avi has the name of this picture if both are there.
            is_taken = item.path.with_suffix('').is_file()
            name = item.name if is_taken else item.name.removesuffix('.mp4')
            partial.replace(self.place('overlays', name, '.mp4'))
        promised = frame_count(item.path)
        if not number:
            problem = problem or 'no frame could be read'
        elif number < promised:
            problem = problem or f'{number} of {promised} frames could be read'
        if problem:
            self.failed.append(f'video {item.path}: {problem}')
        else:
            self.results.add(dict(file=item.file))

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


def ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Result]:
    """Apply a function to items in a thread, which is one item ahead."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > 1:
            yield waiting.popleft().result()
    for result in waiting:
        yield result.result()


def frame_count(path: Path) -> int:
    return max(0, int(cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT)))


def frames_of(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while (frame := capture.read()[1]) is not None:
        yield frame


def open_writer(path: Path, capture: cv2.VideoCapture, shape: tuple) -> cv2.VideoWriter:
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = capture.get(cv2.CAP_PROP_FPS) or 25
    code = cv2.VideoWriter.fourcc(*'mp4v')
    writer = cv2.VideoWriter(str(path), code, rate, shape[1::-1])
    if not writer.isOpened():
        raise UserError(
            f'{path} cannot be written, because this OpenCV has no encoder for videos: give '
            '--format without overlay'
        )
    return writer


def finish(
    results: Results, predictor: Predictor, formats: list[str], score: float, failed: list[str]
) -> None:
    """Write the files that cover all inputs."""
    if 'coco' in formats:
        write_coco(results.folder / 'predictions.json', results, predictor.classes)
    if 'csv' in formats:
        file = results.folder / 'predictions.csv'
        write_csv(file, results, predictor.task, predictor.classes, score)
    failures = results.folder / 'failed.txt'
    if failed:
        failures.write_text('\n'.join(failed) + '\n')
    else:
        failures.unlink(missing_ok=True)
