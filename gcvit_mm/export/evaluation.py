"""The metrics of a model and of its exported file, on the test data of the config."""

import copy
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from tqdm import tqdm

from ..config import default_scope, evaluators_of
from ..datasets.check.settings import WORKER_KEYS
from ..datasets.load_label_map import prepare_maps
from ..errors import UserError
from ..evaluation.metrics import repair_coco_metric
from ..run_config import check_places
from .files import Run
from .graph import Features, ImageModel
from .runner import FINISH
from .source import Source

LOADER = 'test_dataloader'
MAIN = re.compile(r'.*(mAP|mIoU|top1)')
EQUAL = 0.1
"""Points by which the metric of a float32 file may differ, which rounding can cause."""


class Evaluation:
    """Evaluates a model and the files made of it by the evaluator of its config.

    Metrics are AP, mIoU or accuracy in percent, by name; images are taken one at a time.

    Args:
        source: The model.
        graph: The graph of the files.
        max_loss: Points that a metric may lose; by default it must be equal.
    """

    def __init__(self, source: Source, graph: ImageModel, max_loss: float | None = None) -> None:
        if isinstance(graph, Features):
            raise UserError('feature maps have no metric: export without --what features')
        cfg = copy.deepcopy(source.cfg)
        if not cfg.get(LOADER) or not evaluators_of(cfg, 'test'):
            raise UserError(f'config {cfg.filename} needs {LOADER} and test_evaluator for a metric')
        check_places(cfg, (LOADER,))
        self.task, self.graph = source.task, graph
        self.most, self.is_equal = EQUAL if max_loss is None else max_loss, max_loss is None
        prepare_maps(cfg, LOADER)
        MMLogger.get_current_instance().setLevel('WARNING')  # hides the tables of all metrics
        settings = {key: value for key, value in cfg[LOADER].items() if key not in WORKER_KEYS}
        settings.update(num_workers=0, batch_size=1)
        with default_scope(cfg), redirect_stdout(StringIO()):
            self.loader: Any = Runner.build_dataloader(settings)
            self.evaluator = Evaluator(evaluators_of(cfg, 'test'))
        self.evaluator.dataset_meta = self.loader.dataset.metainfo
        for metric in self.evaluator.metrics:
            repair_coco_metric(metric)
        self.expected = self._evaluate(graph.original.test_step, 'the model')
        if not self.expected:
            raise UserError(
                'the model predicts nothing on the test data, or its test_evaluator gives none of '
                'AP, mIoU and accuracy'
            )

    def __call__(self, run: Run) -> dict[str, float]:
        """The metrics of a file."""
        found = self._evaluate(lambda data: self._predict(run, data), 'the file')
        return {name: found.get(name, 0.0) for name in self.expected}  # 0 without predictions

    def loss(self, found: dict[str, float]) -> float:
        """The largest loss of the metrics of a file, in points, or their largest difference."""
        losses = [self.expected[name] - value for name, value in found.items()]
        return round(max(map(abs, losses) if self.is_equal else losses), 6)

    def _evaluate(self, step: Callable[[Any], Any], what: str) -> dict[str, float]:
        only = self.graph.size
        for data in tqdm(self.loader, f'evaluating {what}', leave=False):
            height, width = data['inputs'][0].shape[1:]
            if only and (height, width) != only:
                raise UserError(
                    f'test images are {height}x{width} after the pipeline, and the file is for '
                    f'{only[0]}x{only[1]}: pass --static {height}x{width}, or leave it out'
                )
            with torch.no_grad():
                self.evaluator.process(data_samples=step(data), data_batch=data)
        with redirect_stdout(StringIO()):
            found = self.evaluator.evaluate(len(self.loader.dataset))
        return {
            name: float(np.nan_to_num(value)) * (100 if name.endswith('mAP') else 1)
            for name, value in found.items()
            if MAIN.fullmatch(name)
        }

    def _predict(self, run: Run, data: Any) -> list[Any]:
        (sample,) = data['data_samples']
        image = data['inputs'][0][self.graph.bgr].permute(1, 2, 0)[None]
        size = image.shape[1:3]
        outputs = {name: np.asarray(x) for name, x in run(image).items()}
        height, width = original = sample.ori_shape[:2]
        scale = np.array([width / size[1], height / size[0]] * 2)
        about = dict(mask_threshold=self.graph.mask_threshold)
        found = FINISH[self.task](outputs, about, original, scale, 0.0)
        if self.task == 'classification':
            sample.set_pred_score(torch.from_numpy(found)).set_pred_label(int(found.argmax()))
        elif self.task == 'segmentation':
            sample.pred_sem_seg = PixelData(data=torch.from_numpy(found.astype(np.int64))[None])
        else:
            sample.pred_instances = InstanceData(
                bboxes=torch.tensor([one['box'] for one in found]).reshape(-1, 4),
                scores=torch.tensor([one['score'] for one in found]),
                labels=torch.tensor([one['label'] for one in found], dtype=torch.long),
            )
            if 'masks' in outputs:
                masks = np.array([one['mask'] for one in found], bool).reshape(-1, *original)
                sample.pred_instances.masks = torch.from_numpy(masks)
        return [sample]
