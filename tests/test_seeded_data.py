"""Each sample of a training has its own random numbers, whichever process reads it."""

import json
from collections import Counter

import mmpretrain.datasets
import numpy as np
import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from mmdet.datasets.samplers import ClassAwareSampler  # noqa: F401
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import Dataset

from gcvit_mm.engine import SeededBatchSampler, SeededDataset

REPEAT = dict(type='mmpretrain.RepeatAugSampler', num_repeats=3)


@DATASETS.register_module()
class RandomNumbers(Dataset):
    """Twelve samples of two classes, each a random number as an augmentation draws it."""

    metainfo = dict(classes=('a', 'b'))

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return np.random.random()

    def get_cat_ids(self, index):
        return [index % 2]


def keys_of(sampler, batch_size=4, samples=0):
    dataset = SeededDataset(RandomNumbers())
    built = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=0))
    batches = SeededBatchSampler(built, batch_size, 0, sampler)
    batches.go_to(0, 0, samples)
    return [tuple(map(int, key)) for batch in batches for key in batch]


@pytest.mark.parametrize(
    'sampler', [REPEAT, dict(type='mmdet.ClassAwareSampler', num_sample_class=4)]
)
def test_copies_of_an_index_in_an_epoch_are_augmented_each_in_its_own_way(sampler):
    data, keys = SeededDataset(RandomNumbers()), keys_of(sampler)
    index, copies = Counter(key[-1] for key in keys).most_common(1)[0]
    assert copies > 1
    assert len({data[key] for key in keys if key[-1] == index}) == copies
    later = keys_of(sampler, samples=8)  # a training that resumes draws the same numbers
    assert later == keys[8:]


def test_an_index_that_comes_once_in_an_epoch_keeps_the_key_of_earlier_versions():
    keys = keys_of(dict(type='DefaultSampler', shuffle=True))
    assert {len(key) for key in keys} == {3} and len(set(keys)) == 12


def write_keys(rank, folder):
    dist.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=2)
    (folder / f'{rank}.json').write_text(json.dumps(keys_of(REPEAT, batch_size=2)))


def test_two_processes_have_the_random_numbers_of_one(tmp_path):
    mp.spawn(write_keys, (tmp_path,), nprocs=2)
    both = [
        tuple(key) for rank in (0, 1) for key in json.loads((tmp_path / f'{rank}.json').read_text())
    ]
    assert sorted(both) == sorted(keys_of(REPEAT, batch_size=4))
    assert mmpretrain.datasets
