"""The Gradio page, on which a model predicts on uploaded images."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio_client import utils as client_utils
from matplotlib.backends.backend_agg import FigureCanvasAgg

from ..drawing.attention_figure import attention_figure
from ..errors import UserError
from ..inference import Predictor
from .photo import read_photo
from .result import COLUMNS, LOWEST, Result, picture, predict, rows, summary

SESSIONS = 64
"""Maximum number of sessions whose last image is kept for another threshold or model."""
LIFETIME = 3600
"""Seconds after which images of sessions and files of uploads are deleted."""
STYLE = """
.swatch { display: inline-block; width: 1.2em; height: 1.2em; border: 1px solid #8888 }
.message { margin: 0 }
.message.error { color: var(--error-text-color); background: var(--error-background-fill);
                 border: 1px solid var(--error-border-color); padding: .5em .8em }
"""
ABOUT = '# gcvit_mm\nImages are sent only to the machine that runs this page, which deletes them.'
WELCOME = 'Drop an image to see the prediction of the model.'
BUTTONS: list[Any] = ['download', 'fullscreen']
HIDDEN: dict[str, Any] = dict(api_visibility='undocumented')
WIDTHS = {2: (60, 40), 3: (21, 49, 30), 4: (21, 24, 20, 35)}
"""Widths of the columns of a table, in percent, by their number."""


def build_page(predictors: Mapping[str, Predictor]) -> gr.Blocks:
    """Build the page."""
    names = list(predictors)
    first = predictors[names[0]]

    def open_photo(upload: dict | None, model: str, score: float) -> list[Any]:
        path = (upload or {}).get('path')
        if path is None:
            return [None, None, *show_first_tab(None, model, score)]
        try:
            result = predict(predictors[model], Path(path).name, read_photo(path))
        except UserError as error:
            return [None, *show_error(error, model)]
        return [gr.skip(), result, *show_first_tab(result, model, score)]

    def change_model(result: Result | None, model: str, score: float) -> list[Any]:
        slider = gr.Slider(visible=predictors[model].task == 'detection')
        try:
            if result is not None:
                result = predict(predictors[model], result.name, result.image)
        except UserError as error:
            return [slider, *show_error(error, model)]
        return [slider, result, *show_first_tab(result, model, score)]

    def show_error(error: UserError, model: str) -> list[Any]:
        message = _message(str(error), is_error=True)
        return [None, gr.skip(), message, *_empty(predictors[model])]

    def show_first_tab(result: Result | None, model: str, score: float) -> list[Any]:
        return [gr.Tabs(selected='prediction'), *show(result, model, score)]

    def show(result: Result | None, model: str, score: float) -> list[Any]:
        predictor = predictors[model]
        if result is None:
            return [_message(WELCOME), *_empty(predictor)]
        text = f'{result.name}: {summary(predictor, result, score)}'
        return [
            _message(text),
            gr.Image(picture(predictor, result, score), alt_text=text),
            _table(predictor, rows(predictor, result, score)),
        ]

    def show_attention(result: Result | None, attended: Result | None, model: str) -> list[Any]:
        if result is attended:
            return [gr.skip(), gr.skip()]
        if result is None:
            return [None, None]
        alt_text = f'Attention maps of {model} for {result.name}'
        try:
            figure = attention_figure(predictors[model], result.image, f'{result.name} by {model}')
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
        return [result, gr.Image(pixels, alt_text=alt_text)]

    with gr.Blocks(
        title='gcvit_mm', analytics_enabled=False, delete_cache=(LIFETIME // 6, LIFETIME)
    ) as page:
        # The results on the first and the second tab; the second is drawn when it is opened.
        result, attended = gr.State(time_to_live=LIFETIME), gr.State(time_to_live=LIFETIME)
        gr.Markdown(ABOUT)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                upload = _upload_field()
                model = gr.Dropdown(names, value=names[0], label='Model')
                score = gr.Slider(
                    LOWEST,
                    1,
                    0.3,
                    step=0.01,
                    label='Minimum score',
                    info='Objects with lower scores are hidden.',
                    visible=first.task == 'detection',
                )
            with gr.Column(scale=3, min_width=300):
                message = gr.HTML(_message(WELCOME))
                with gr.Tabs() as tabs:
                    with gr.Tab('Prediction', id='prediction'):
                        image = _picture_field()
                        table = _table(first, [])
                    with gr.Tab('Attention', id='attention') as attention:
                        figure = _picture_field()
        outputs = [message, image, table]
        # Requests of all visitors are queued, so that models run one at a time.
        queued: dict[str, Any] = dict(concurrency_limit=1, concurrency_id='model', **HIDDEN)
        # Gradio must not open uploads (preprocess), which may not be images.
        upload.input(
            open_photo,
            [upload, model, score],
            [upload, result, tabs, *outputs],
            preprocess=False,
            show_progress_on=image,
            **queued,
        )
        model.change(
            change_model,
            [result, model, score],
            [score, result, tabs, *outputs],
            show_progress_on=image,
            **queued,
        )
        score.change(
            show,
            [result, model, score],
            outputs,
            trigger_mode='always_last',
            show_progress='hidden',
            **HIDDEN,
        )
        attention.select(show_attention, [result, attended, model], [attended, figure], **queued)
    page.state_session_capacity = SESSIONS
    return page.queue(max_size=50, default_concurrency_limit=1, api_open=False)


def _picture_field() -> gr.Image:
    return gr.Image(show_label=False, interactive=False, format='png', buttons=BUTTONS)


def _upload_field() -> gr.Image:
    field = gr.Image(label='Image', type='filepath', height=320, buttons=[])
    move = field.async_move_resource_to_block_cache

    async def take_upload(path: str | Path | None) -> str | None:
        if client_utils.is_http_url_like(str(path)):  # Gradio would fetch it
            raise gr.Error('an upload must be a file, not an address', print_exception=False)
        return await move(path)

    field.async_move_resource_to_block_cache = take_upload  # type: ignore[method-assign, assignment]
    return field


def _message(text: str, is_error: bool = False) -> str:
    kind = 'class="message error" role="alert"' if is_error else 'class="message" role="status"'
    return f'<p {kind}>{escape(text)}</p>'


def _empty(predictor: Predictor) -> list[Any]:
    return [gr.Image(None, alt_text=''), _table(predictor, [])]


def _table(predictor: Predictor, value: list[list[Any]]) -> gr.Dataframe:
    columns = COLUMNS[predictor.task]
    return gr.Dataframe(
        value,
        label='Predictions',
        headers=list(columns),
        datatype=list(columns.values()),
        interactive=False,
        column_widths=[f'{share}%' for share in WIDTHS[len(columns)]],
        wrap=True,
    )
