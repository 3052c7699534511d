"""Writing of the predictions of a classifier to a table."""

import csv
from collections.abc import Sequence

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from ..drawing.palette import class_names

COLUMNS = ('image', 'true_label', 'true_class', 'label', 'class', 'score', 'top5', 'top5_scores')


@METRICS.register_module()
class ClassificationCSV(BaseMetric):
    """Writes a line per image: its path, the true and the predicted class, and the top 5.

    Classes have the numbers of the data set; the true class is empty if the data have no labels.

    Args:
        out_file: The file to write.
    """

    def __init__(self, out_file: str) -> None:
        super().__init__()
        self.out_file = out_file

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Collect the paths, labels and top 5 predictions of a batch."""
        for sample in data_samples:
            scores, labels = sample['pred_score'].sort(descending=True, stable=True)
            truth = sample['gt_label'].item() if 'gt_label' in sample else None
            self.results.append(
                (sample['img_path'], truth, labels[:5].tolist(), scores[:5].tolist())
            )

    def compute_metrics(self, results: list) -> dict:
        """Write the file; the result has no metrics."""
        names = class_names(self.dataset_meta or {})
        with open(self.out_file, 'w', newline='') as file:
            table = csv.writer(file)
            table.writerow(COLUMNS)
            for path, truth, labels, scores in results:
                shown = [f'{score:.6f}' for score in scores]
                classes = [names[i] if names and i is not None else '' for i in (truth, labels[0])]
                top5 = ' '.join(map(str, labels)), ' '.join(shown)
                table.writerow((path, truth, classes[0], labels[0], classes[1], shown[0], *top5))
        return {}
