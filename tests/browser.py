"""A headless Chromium that tests look at pages with; ``pytest_plugins = ['browser']`` gives it."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ('chromium', 'chromium-browser', 'google-chrome')


@dataclass
class Visit:
    """A page that is open, what it asked the network for, and what went wrong on it."""

    page: Page
    requests: list[str] = field(default_factory=list)
    """URLs other than of files and of data in the page."""
    problems: list[str] = field(default_factory=list)
    """Warnings and errors of the console, and exceptions that nothing caught."""


@pytest.fixture(scope='session')
def browser() -> Iterator[Browser]:
    """Chromium or Chrome of this machine; the test is skipped where there is none."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f'none of {", ".join(NAMES)} is on the path')
    with sync_playwright() as playwright:
        # Chromium refuses its sandbox to root, who tests in containers.
        opened = playwright.chromium.launch(executable_path=path, args=['--no-sandbox'])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser) -> Iterator[Callable[..., Visit]]:
    """A function that opens an address; its options are those of playwright's ``new_page``."""
    pages = []

    def open_address(url: str, **options: object) -> Visit:
        page = browser.new_page(**options)
        pages.append(page)
        visit = Visit(page)
        page.on('request', lambda request: _note_request(visit, request.url))
        page.on('console', lambda message: _note_message(visit, message))
        page.on('pageerror', lambda error: visit.problems.append(str(error)))
        page.goto(url)
        return visit

    yield open_address
    for page in pages:
        page.close()


def _note_request(visit: Visit, url: str) -> None:
    if not url.startswith(('file:', 'data:')):
        visit.requests.append(url)


def _note_message(visit: Visit, message: object) -> None:
    if message.type in ('warning', 'error'):
        visit.problems.append(message.text)
