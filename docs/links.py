"""Links of the notebook on the site, where pages are folders; mkdocs adapts those of Markdown."""

import re


def on_page_content(html, page, config, files):
    if page.file.src_uri.endswith('.ipynb'):
        return re.sub(
            r'href="((?:\.\./)?[\w/]+\.(?:md|py))"',
            lambda m: f'href="{_url(m[1], page, files)}"',
            html,
        )
    return html


def _url(link, page, files):
    folder = page.file.src_uri.rpartition('/')[0]
    name = link.removeprefix('../') if link.startswith('../') else f'{folder}/{link}'
    return files.src_uris[name].url_relative_to(page.file)
