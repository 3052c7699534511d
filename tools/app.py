"""Serve a local web page on which models predict on uploaded images."""

import argparse
import os
import signal
import sys
import tempfile
from types import ModuleType

import _package  # noqa: F401

from gcvit_mm.app.address import is_loopback, listen
from gcvit_mm.cli import add_trust_argument, run
from gcvit_mm.errors import UserError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'models',
        nargs='+',
        metavar='MODEL',
        help='work directory of a run, name of a zoo model, config file, or ONNX file of '
        'tools/export.py; the page offers all of them',
    )
    parser.add_argument(
        '--checkpoint', help='file or gcvit://NAME for a single MODEL; default: best or newest'
    )
    add_trust_argument(parser)
    parser.add_argument('--device', help='cpu, cuda:1 and so on; default: a GPU if there is one')
    parser.add_argument('--host', default='127.0.0.1', help='default: only this machine')
    parser.add_argument('--port', type=int, default=7860, help='0: any free port; default: 7860')
    parser.add_argument(
        '--max-upload', type=int, default=20, metavar='MB', help='maximum image size; default: 20'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    models = list(dict.fromkeys(args.models))
    if args.checkpoint and len(models) > 1:
        raise UserError('--checkpoint needs a single MODEL: give work directories for several')
    if args.max_upload < 1:
        raise UserError(f'--max-upload {args.max_upload}: it must be at least 1')
    from tqdm import tqdm

    from gcvit_mm import Predictor
    from gcvit_mm.export.picture import FilePredictor

    listening = listen(args.host, args.port)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C
    # By default, all Gradio apps of a machine share a folder, and serve files from it.
    with tempfile.TemporaryDirectory(prefix='gcvit_mm_app_') as uploads:
        os.environ |= {'GRADIO_TEMP_DIR': uploads, 'GRADIO_ANALYTICS_ENABLED': 'False'}
        page, server = import_page()
        predictors = {
            model: FilePredictor(model)
            if model.endswith('.onnx')
            else Predictor(model, args.checkpoint, args.device)
            for model in tqdm(models, 'loading models', disable=None)
        }
        host, port = listening.getsockname()[:2]
        if not is_loopback(host):
            print(
                'warning: the page has no password, and everyone on the network who reaches '
                f'{host}, port {port}, can use it',
                file=sys.stderr,
            )
        server.serve(page.build_page(predictors), listening, args.max_upload * 2**20)


def import_page() -> tuple[ModuleType, ModuleType]:
    """Import the modules of Gradio, which reads the environment when it is imported."""
    try:
        from gcvit_mm.app import page, server
    except ModuleNotFoundError as error:
        if error.name != 'gradio':
            raise
        raise UserError("Gradio is not installed: pip install 'gcvit_mm[app]'") from error
    return page, server


if __name__ == '__main__':
    run(main)
