"""Compare the speed and memory of models: backbones, or the whole models of configs.

After a warm-up, models take turns, so that conditions are equal for all. A model is an arch of GC
ViT (gcvit_tiny), another backbone (swin_tiny, convnext_tiny, resnet50), timm_NAME, or a config,
which may be that of a package (mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py). Options follow
after colons: gcvit_tiny:window_size=24:attn_impl=eager:compile.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _package  # noqa: F401

from gcvit_mm.cli import run
from gcvit_mm.errors import UserError
from gcvit_mm.fileio import atomic_text

if TYPE_CHECKING:
    import torch

    from gcvit_mm.benchmark import Measured, Peaks

MODELS = ('gcvit_tiny', 'gcvit_tiny:attn_impl=eager', 'swin_tiny', 'convnext_tiny', 'resnet50')
DTYPES = ('float32', 'bfloat16', 'float16')


def parse_args() -> argparse.Namespace:
    summary, _, details = __doc__.partition('\n\n')
    parser = argparse.ArgumentParser(description=summary, epilog=details)
    parser.add_argument('models', nargs='*', default=MODELS, metavar='MODEL')
    parser.add_argument(
        '--size', nargs='+', type=size, default=[(512, 512)], metavar='HxW', help='image sizes'
    )
    parser.add_argument('--batch', type=int, default=1, metavar='N', help='batch size')
    parser.add_argument(
        '--mode', nargs='+', choices=['inference', 'training'], default=['inference']
    )
    parser.add_argument('--dtype', nargs='+', choices=DTYPES, default=['float32'])
    parser.add_argument('--device', type=device_of, help='default: a GPU if there is one')
    parser.add_argument('--threads', type=int, metavar='N', help='CPU threads')
    parser.add_argument('--repeat', type=int, default=10, metavar='N', help='timed steps per model')
    parser.add_argument('--warmup', type=int, default=2, metavar='N', help='untimed steps before')
    parser.add_argument('--out', metavar='FILE.json', help='write all measurements to a file')
    return parser.parse_args()


def size(text: str) -> tuple[int, int]:
    height, _, width = text.partition('x')
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f'{text!r} is not HEIGHTxWIDTH, such as 800x1280')
    return int(height), int(width)


def device_of(text: str) -> str:
    if not re.fullmatch(r'cpu|cuda(:\d+)?', text):
        raise argparse.ArgumentTypeError(f'{text!r} is not cpu, cuda or cuda:NUMBER')
    return text


def main() -> None:
    args = parse_args()
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # hides messages of the profiler
    if min(args.repeat, args.warmup, args.batch) < 1:
        raise UserError('--repeat, --warmup and --batch must be at least 1')
    if args.out and not Path(args.out).parent.is_dir():
        raise UserError(f'--out: folder {Path(args.out).parent} does not exist: create it first')
    import torch
    from mmengine.logging import MMLogger

    from gcvit_mm.benchmark.table import heading, table
    from gcvit_mm.models.precision import use_tf32

    device = torch.device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise UserError('--device cuda: PyTorch finds no GPU: pass --device cpu')
    if args.threads:
        torch.set_num_threads(args.threads)
    MMLogger.get_current_instance().setLevel('WARNING')  # hides a line per initialised tensor
    use_tf32()
    runs = []
    for dtype in args.dtype:
        for shape in args.size:
            for mode in args.mode:
                with redirect_stdout(sys.stderr):  # packages print; stdout is for the tables
                    runs.append(compare(args, device, dtype, shape, mode))
                print(heading(runs[-1]))
                print_table(table(runs[-1]), left=(0, 1))
                if args.out:
                    write(args.out, machine(device), runs)


def write(out: str, machine: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    """Write the measurements so far."""
    content = dict(machine=machine, command=shlex.join(sys.argv[1:]), runs=runs)
    try:
        atomic_text(out, f'{json.dumps(content, indent=1)}\n')
    except OSError as error:
        raise UserError(f'{out} cannot be written: {error.strerror}') from error


def compare(
    args: argparse.Namespace,
    device: torch.device,
    dtype: str,
    shape: tuple[int, int],
    mode: str,
) -> dict[str, Any]:
    """Measure all models with one setting."""
    import torch
    from tqdm import tqdm

    from gcvit_mm.benchmark import build_subject, count_work, measure

    case: Any = dict(
        batch=args.batch,
        size=shape,
        training=mode == 'training',
        dtype=getattr(torch, dtype),
        device=device,
    )
    counted = dict(case, device=torch.device('cpu'), counted=True)
    fake = device.type == 'cuda'  # which would compute all scores of a map at once
    works = [count_work(build_subject(name, **counted).step, fake) for name in args.models]
    subjects = [build_subject(name, **case) for name in args.models]

    def progress(rounds: range) -> Any:
        return tqdm(rounds, f'{mode} {dtype} {shape[0]}x{shape[1]}', leave=False, disable=None)

    results = measure(subjects, device, repeat=args.repeat, warmup=args.warmup, turn=progress)
    peaks = peaks_of(device, dtype)
    named = zip(args.models, results, strict=True)
    medians = {name: each.median for name, each in named if each is not None}
    rows = [
        {
            'model': name,
            **figures(each),
            'images_per_second': args.batch / each.median,
            'flops': work.flops,
            'bytes': work.bytes,
            'times_floor': each.median / max(work.flops / peaks.flops, work.bytes / peaks.bytes),
            'time_over': {peer: each.median / other for peer, other in medians.items()},
        }
        if each is not None
        else {'model': name}
        for name, each, work in zip(args.models, results, works, strict=True)
    ]
    settings = dict(dtype=dtype, size=list(shape), batch=args.batch, mode=mode)
    return dict(**settings, peaks=vars(peaks), models=rows)


@cache
def peaks_of(device: torch.device, dtype: str) -> Peaks:
    import torch

    from gcvit_mm.benchmark import measure_peaks

    return measure_peaks(device, getattr(torch, dtype))


def figures(result: Measured) -> dict[str, Any]:
    seconds = result.seconds
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    return {
        'seconds': result.median,
        'quartiles': [low, high],
        'first_seconds': result.first,
        'peak_bytes': result.peak_bytes,
    }


def print_table(rows: list[list[str]], left: tuple[int, ...]) -> None:
    """Print a row of titles and the others; the columns numbered in ``left`` are flush left."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    titles, *body = rows
    printed = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for i, title in enumerate(titles):
        printed.add_column(title, justify='left' if i in left else 'right', overflow='fold')
    for cells in body:
        printed.add_row(*cells)
    console = Console(highlight=False)
    if not console.is_terminal and 'COLUMNS' not in os.environ:
        console.width = 10_000  # in files, each row is to be on one line
    console.print(printed)


def machine(device: torch.device) -> dict[str, Any]:
    """The device, software and date of the measurements."""
    import torch

    on_gpu = device.type == 'cuda'
    return {
        'device': torch.cuda.get_device_name(device) if on_gpu else processor(),
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'python': platform.python_version(),
        'commit': commit(),
        'date': datetime.date.today().isoformat(),
    }


def processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()


def commit() -> str:
    command = ['git', 'describe', '--always', '--dirty']
    try:
        git = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'
    return git.stdout.strip()


if __name__ == '__main__':
    run(main)
