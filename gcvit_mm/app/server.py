"""The server of the page, which reads no files but uploads."""

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
"""Paths that make Gradio's server fetch from other hosts."""
SHUTDOWN_SECONDS = 2
"""Maximum time for running requests when the server stops."""


def serve(page: gr.Blocks, listening: socket.socket, max_upload: int) -> None:
    """Serve a page on a socket of ``listen`` until a signal stops it, and print its address.

    Uploads may have at most ``max_upload`` bytes.
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
    # Otherwise Gradio reads any file of this machine that a request names.
    page.has_launched = True
    config = uvicorn.Config(app, log_level='warning', timeout_graceful_shutdown=SHUTDOWN_SECONDS)
    mounted: Any = app.routes[-1]
    shown = f'[{host}]' if ':' in host else host
    _Server(config, mounted.app, f'http://{shown}:{port}').run(sockets=[listening])


class _Server(uvicorn.Server):
    """A uvicorn server that tells Gradio to end its endless responses on shutdown."""

    def __init__(self, config: uvicorn.Config, gradio: Any, address: str) -> None:
        super().__init__(config)
        self.gradio = gradio
        self.address = address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # Only now does the server handle signals. Before, one may be lost, because Python ignores
        # what a signal handler raises within a destructor.
        print(f'{self.address}  (press Ctrl-C to stop)', flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.gradio.stop_event.set()
        # Responses that the shutdown cuts off are no errors.
        logging.getLogger('uvicorn.error').setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


class OwnPageOnly:
    """ASGI middleware that refuses requests of other sites that are open in the browser.

    Pages of other sites may send requests to a local server, and read the responses if a domain
    name of theirs resolves to this machine (DNS rebinding). With ``loopback``, the Host header must
    be a loopback address or localhost.
    """

    def __init__(self, app: ASGIApp, loopback: bool) -> None:
        self.app = app
        self.loopback = loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, or respond with status 403."""
        refused = self._refuse(scope) if scope['type'] == 'http' else ''
        answer = PlainTextResponse(refused, 403) if refused else self.app
        await answer(scope, receive, send)

    def _refuse(self, scope: Scope) -> str:
        headers = Headers(scope=scope)
        host, origin = headers.get('host', ''), headers.get('origin')
        if self.loopback and not is_loopback(urlsplit(f'//{host}').hostname or ''):
            return f'{host} is not an address of this page'
        if origin and urlsplit(origin).netloc != host:
            return f'{origin} must not send requests to this page'
        if FETCHING.match(scope['path']):
            return 'this server does not fetch from other hosts'
        return ''
