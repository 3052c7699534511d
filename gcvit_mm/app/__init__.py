"""The page of ``tools/app.py``; it needs the extra ``app``."""

from .page import build_page
from .server import is_loopback, listen, serve

__all__ = ['build_page', 'is_loopback', 'listen', 'serve']
