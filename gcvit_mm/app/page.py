"""The page: a photo in, what the chosen model finds in it out."""

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
"""How many visitors' last photos are kept, for another threshold or model."""
KEPT = 3600
"""Seconds that they, and the files of uploads, are kept."""
STYLE = """
.swatch { display: inline-block; width: 1.2em; height: 1.2em; border: 1px solid #8888 }
.message { margin: 0 }
.message.error { color: var(--error-text-color); background: var(--error-background-fill);
                 border: 1px solid var(--error-border-color); padding: .5em .8em }
"""
ABOUT = '# gcvit_mm\nPhotos go to the machine that runs this page and no further; it deletes them.'
WELCOME = 'Drop a photo: what the model finds appears here.'
BUTTONS: list[Any] = ['download', 'fullscreen']
HIDDEN: dict[str, Any] = dict(api_visibility='undocumented')
WIDTHS = {2: (60, 40), 3: (21, 49, 30), 4: (21, 24, 20, 35)}
"""Of tables with so many columns, in percent."""


def build_page(predictors: Mapping[str, Predictor]) -> gr.Blocks:
    """Build the page.

    Args:
        predictors: The models to choose from, by the names that the page shows.
    """
    names = list(predictors)
    first = predictors[names[0]]

    def open_photo(upload: dict | None, model: str, score: float) -> list[Any]:
        path = (upload or {}).get('path')
        if path is None:
            return [None, None, *show_anew(None, model, score)]
        try:
            image = read_photo(path)
        except UserError as error:
            return [
                None,
                None,
                gr.skip(),
                _message(str(error), wrong=True),
                *_empty(predictors[model]),
            ]
        result = predict(predictors[model], Path(path).name, image)
        return [gr.skip(), result, *show_anew(result, model, score)]

    def change_model(result: Result | None, model: str, score: float) -> list[Any]:
        if result is not None:
            result = predict(predictors[model], result.name, result.photo)
        slider = gr.Slider(visible=predictors[model].task == 'detection')
        return [slider, result, *show_anew(result, model, score)]

    def show_anew(result: Result | None, model: str, score: float) -> list[Any]:
        return [gr.Tabs(selected='found'), *show(result, model, score)]

    def show(result: Result | None, model: str, score: float) -> list[Any]:
        predictor = predictors[model]
        if result is None:
            return [_message(WELCOME), *_empty(predictor)]
        said = f'{result.name}: {summary(predictor, result, score)}'
        return [
            _message(said),
            gr.Image(picture(predictor, result, score), alt_text=said),
            _table(predictor, rows(predictor, result, score)),
        ]

    def show_attention(result: Result | None, attended: Result | None, model: str) -> list[Any]:
        if result is attended:
            return [gr.skip(), gr.skip()]
        if result is None:
            return [None, None]
        said = f'Where {model} looks in {result.name}'
        try:
            figure = attention_figure(predictors[model], result.photo, f'{result.name} by {model}')
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
        return [result, gr.Image(pixels, alt_text=said)]

    with gr.Blocks(
        title='gcvit_mm', analytics_enabled=False, delete_cache=(KEPT // 6, KEPT)
    ) as page:
        # What is shown on the first tab, and what on the second: that one is drawn when opened.
        result, attended = gr.State(time_to_live=KEPT), gr.State(time_to_live=KEPT)
        gr.Markdown(ABOUT)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                photo = _photo_field()
                model = gr.Dropdown(names, value=names[0], label='Model')
                score = gr.Slider(
                    LOWEST,
                    1,
                    0.3,
                    step=0.01,
                    label='Least score',
                    info='Objects that the model is less sure of are left out.',
                    visible=first.task == 'detection',
                )
            with gr.Column(scale=3, min_width=300):
                message = gr.HTML(_message(WELCOME))
                with gr.Tabs() as tabs:
                    with gr.Tab('Found', id='found'):
                        image = gr.Image(
                            show_label=False, interactive=False, format='png', buttons=BUTTONS
                        )
                        table = _table(first, [])
                    with gr.Tab('Attention', id='attention') as attention:
                        figure = gr.Image(
                            show_label=False, interactive=False, format='png', buttons=BUTTONS
                        )
        shown = [message, image, table]
        # One thing at a time is asked of a model, whoever asks.
        one: dict[str, Any] = dict(concurrency_limit=1, concurrency_id='model', **HIDDEN)
        # What was uploaded may be no image: Gradio must not open it (preprocess).
        photo.input(
            open_photo,
            [photo, model, score],
            [photo, result, tabs, *shown],
            preprocess=False,
            show_progress_on=image,
            **one,
        )
        model.change(
            change_model,
            [result, model, score],
            [score, result, tabs, *shown],
            show_progress_on=image,
            **one,
        )
        score.change(
            show,
            [result, model, score],
            shown,
            trigger_mode='always_last',
            show_progress='hidden',
            **HIDDEN,
        )
        attention.select(show_attention, [result, attended, model], [attended, figure], **one)
    page.state_session_capacity = SESSIONS
    return page.queue(max_size=50, default_concurrency_limit=1, api_open=False)


def _photo_field() -> gr.Image:
    field = gr.Image(label='Photo', type='filepath', height=320, buttons=[])
    move = field.async_move_resource_to_block_cache

    async def take_upload(path: str | Path | None) -> str | None:
        if client_utils.is_http_url_like(str(path)):  # Gradio would fetch it
            raise gr.Error('only files can be uploaded', print_exception=False)
        return await move(path)

    field.async_move_resource_to_block_cache = take_upload  # type: ignore[method-assign, assignment]
    return field


def _message(said: str, wrong: bool = False) -> str:
    kind = 'class="message error" role="alert"' if wrong else 'class="message" role="status"'
    return f'<p {kind}>{escape(said)}</p>'


def _empty(predictor: Predictor) -> list[Any]:
    return [gr.Image(None, alt_text=''), _table(predictor, [])]


def _table(predictor: Predictor, value: list[list[Any]]) -> gr.Dataframe:
    columns = COLUMNS[predictor.task]
    return gr.Dataframe(
        value,
        label='List',
        headers=list(columns),
        datatype=list(columns.values()),
        interactive=False,
        column_widths=[f'{share}%' for share in WIDTHS[len(columns)]],
        wrap=True,
    )
