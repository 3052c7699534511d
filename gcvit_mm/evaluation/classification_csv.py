"""Predictions of a classifier as a table."""

import csv
from collections.abc import Sequence

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

COLUMNS = ('image', 'true_label', 'true_class', 'label', 'class', 'score', 'top5', 'top5_scores')


@METRICS.register_module()
class ClassificationCSV(BaseMetric):
    """Write a line per image: its path, the true class, the predicted one, and the five best.

    Classes are numbered as in the data set; the true one is empty where the data has none.

    Args:
        out_file: The file to write.
    """

    def __init__(self, out_file: str) -> None:
        super().__init__()
        self.out_file = out_file

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep what the file needs of a batch of predictions."""
        for sample in data_samples:
            scores, labels = sample['pred_score'].sort(descending=True, stable=True)
            truth = sample['gt_label'].item() if 'gt_label' in sample else None
            self.results.append(
                (sample['img_path'], truth, labels[:5].tolist(), scores[:5].tolist())
            )

    def compute_metrics(self, results: list) -> dict:
        """Write the file; there is no figure to report."""
        names = (self.dataset_meta or {}).get('classes')
        with open(self.out_file, 'w', newline='') as file:
            table = csv.writer(file)
            table.writerow(COLUMNS)
            for path, truth, labels, scores in results:
                shown = [f'{score:.6f}' for score in scores]
                classes = [names[i] if names and i is not None else '' for i in (truth, labels[0])]
                top5 = ' '.join(map(str, labels)), ' '.join(shown)
                table.writerow((path, truth, classes[0], labels[0], classes[1], shown[0], *top5))
        return {}
