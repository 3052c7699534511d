"""Samples whose augmentation follows from their place in a training."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from mmengine.dist import get_world_size
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import BatchSampler, Dataset

from .randomness import seed_generators


@DATASETS.register_module()
class SeededDataset(Dataset):
    """A data set that augments a sample as its key says, in whichever process and order it is read.

    Everything but its samples is the other data set's, attributes that are set included.

    Args:
        dataset: Another data set, or its config.
    """

    def __init__(self, dataset: Any) -> None:
        if isinstance(dataset, dict):
            file = dataset.get('ann_file') or dataset.get('type')
            with _noting(lambda: f'while reading {file}'):
                dataset = DATASETS.build(dataset)
        object.__setattr__(self, 'seeded', dataset)

    def __len__(self) -> int:
        return len(self.seeded)

    def __getitem__(self, key: tuple[int, ...]) -> Any:
        """The sample of the index that is last in ``key``, augmented by random numbers from it."""
        seed_generators(*key)
        with _noting(lambda: f'while loading sample {key[-1]} of {self._name(key[-1])}'):
            return self.seeded[key[-1]]

    def _name(self, index: int) -> str:
        file = getattr(self.seeded, 'ann_file', '') or type(self.seeded).__name__
        if not hasattr(self.seeded, 'get_data_info'):
            return file
        return f'{file}: {self.seeded.get_data_info(index).get("img_path")}'

    def __getattr__(self, name: str) -> Any:
        if name == 'seeded':  # not there yet: the object is being unpickled
            raise AttributeError(name)
        return getattr(self.seeded, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.seeded, name, value)

    def __getstate__(self) -> dict:
        return {'seeded': self.seeded}

    def __setstate__(self, state: dict) -> None:
        object.__setattr__(self, 'seeded', state['seeded'])


@contextmanager
def _noting(say: Callable[[], str]) -> Iterator[None]:
    """Add to what is raised where it came from."""
    try:
        yield
    except Exception as error:
        if hasattr(error, 'add_note'):  # Python 3.11
            error.add_note(say())
        raise


@DATA_SAMPLERS.register_module()
class SeededBatchSampler:
    """Batches of keys for ``SeededDataset``, from any place in a pass over the data.

    A key is (seed, how often the data were gone through before, index). It does not depend on how
    many processes share the data.

    Args:
        sampler: A sampler of the data set.
        batch_size: Samples in a batch of one process.
        seed: Of the training.
        sampler_cfg: The sampler's config: samplers remember what they gave, so each pass gets a
            new one.
        batch_sampler_cfg: Config of what makes batches of its indices; None takes PyTorch's.
        drop_last: For PyTorch's.
    """

    def __init__(
        self,
        sampler: Any,
        batch_size: int,
        seed: int,
        sampler_cfg: dict,
        batch_sampler_cfg: dict | None = None,
        drop_last: bool = False,
    ) -> None:
        self.dataset = sampler.dataset
        self.batch_size = batch_size
        self.sampler_cfg = sampler_cfg
        self.batch_sampler_cfg = batch_sampler_cfg
        self.drop_last = drop_last
        self.go_to(seed, 0, 0)

    def go_to(self, seed: int, passes: int, samples: int) -> None:
        """Set where the next iteration begins.

        Args:
            seed: Of the training.
            passes: How often a sampler was exhausted.
            samples: How many were given since, to all processes.
        """
        self.seed = seed
        self.passes = passes
        self.first = samples // self.samples_per_batch
        own = dict(dataset=self.dataset, seed=seed)
        self.sampler = DATA_SAMPLERS.build(self.sampler_cfg, default_args=own)
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(passes)
        if self.batch_sampler_cfg is None:
            self.batches = BatchSampler(self.sampler, self.batch_size, self.drop_last)
        else:
            own = dict(sampler=self.sampler, batch_size=self.batch_size)
            self.batches = DATA_SAMPLERS.build(self.batch_sampler_cfg, default_args=own)

    @property
    def samples_per_batch(self) -> int:
        """Samples of a batch in all processes."""
        return self.batch_size * get_world_size()

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for number, batch in enumerate(islice(self.batches, self.first, None), self.first):
            # An infinite sampler goes through the data again and again in one pass.
            rounds = self.passes + number * self.samples_per_batch // len(self.dataset)
            yield [(self.seed, rounds, index) for index in batch]

    def __len__(self) -> int:
        return len(self.batches)
