"""The server of the page, which reads uploads and nothing else."""

import logging
import re
import socket
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from .address import is_loopback
from .page import STYLE

FETCHING = re.compile(r'/gradio_api/(proxy=|file[=/]\w+:/)')
"""Addresses by which Gradio's server fetches from others."""
PATIENCE = 2
"""Seconds that running answers are given when the server ends."""


def serve(page: gr.Blocks, listening: socket.socket, max_upload: int) -> None:
    """Serve a page until a signal ends it; print its address when it answers.

    Args:
        page: The page.
        listening: Of ``listen``.
        max_upload: Size that an upload may have, in bytes.
    """
    host, port = listening.getsockname()[:2]
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(OwnPageOnly, loopback=is_loopback(host))
    gr.mount_gradio_app(
        app,
        page,
        path='/',
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=max_upload,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Default(
            font=['system-ui', 'sans-serif'], font_mono=['ui-monospace', 'monospace']
        ),
        css=STYLE,
    )
    # Else Gradio reads any file of this machine that a request names, and not only uploads.
    page.has_launched = True
    config = uvicorn.Config(app, log_level='warning', timeout_graceful_shutdown=PATIENCE)
    mounted: Any = app.routes[-1]
    shown = f'[{host}]' if ':' in host else host
    _Server(config, mounted.app, f'http://{shown}:{port}').run(sockets=[listening])


class _Server(uvicorn.Server):
    """Uvicorn's, which tells Gradio of the end: some of its answers last for ever."""

    def __init__(self, config: uvicorn.Config, gradio: Any, address: str) -> None:
        super().__init__(config)
        self.gradio = gradio
        self.address = address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # From here on it heeds signals. Before, Python may lose one: what a handler raises within
        # a destructor is ignored.
        print(f'{self.address}  (Ctrl-C ends it)', flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.gradio.stop_event.set()
        # An answer that is cut off now is no error.
        logging.getLogger('uvicorn.error').setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


class OwnPageOnly:
    """Refuses what other pages that are open in a browser may ask a local server for.

    A page of another site may send requests here, and by a name of its own that leads here (DNS
    rebinding) also read the answers.

    Args:
        app: What is guarded.
        loopback: Whether only names of this machine are right.
    """

    def __init__(self, app: ASGIApp, loopback: bool) -> None:
        self.app = app
        self.loopback = loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403."""
        refused = self._refuse(scope) if scope['type'] == 'http' else ''
        answer = PlainTextResponse(refused, 403) if refused else self.app
        await answer(scope, receive, send)

    def _refuse(self, scope: Scope) -> str:
        headers = Headers(scope=scope)
        host, origin = headers.get('host', ''), headers.get('origin')
        if self.loopback and not is_loopback(urlsplit(f'//{host}').hostname or ''):
            return f'this page is not at {host}'
        if origin and urlsplit(origin).netloc != host:
            return f'{origin} may not ask this page'
        if FETCHING.match(scope['path']):
            return 'nothing is fetched from other machines'
        return ''
