"""Formatting of configs, for which mmengine's yapf takes seconds, or a minute with long paths."""

import ast
from importlib import import_module
from typing import Any

WIDTH = 100


def format_code(text: str) -> str:
    """Format assignments of dictionaries, lists and constants; others stay on one line."""
    return ''.join(f'{_format(statement, 0)}\n' for statement in ast.parse(text).body)


def install() -> None:
    """Let mmengine format configs, which it does for each checkpoint, by ``format_code``."""
    config: Any = import_module('mmengine.config').Config
    formatted = config.pretty_text.fget

    def pretty_text(cfg: Any) -> str:
        vars(cfg)['_format_python_code'] = False
        return format_code(formatted(cfg))

    config.pretty_text = property(pretty_text)


def _format(node: ast.AST, indent: int, before: str = '', after: str = '') -> str:
    """Write a node after and before some code, with each entry on a line if it is too long."""
    line = f'{before}{ast.unparse(node)}{after}'
    if isinstance(node, ast.Assign) and len(line) > WIDTH:
        return _format(node.value, indent, line[: line.index('=') + 1] + ' ')
    if '\n' not in line and indent + len(line) <= WIDTH:
        return line
    inner: list[tuple[str, ast.AST]]
    if isinstance(node, ast.Call) and (node.args or node.keywords):
        opening, closing = f'{ast.unparse(node.func)}(', ')'
        inner = [('', each) for each in node.args]
        inner += [(f'{k.arg}=' if k.arg else '**', k.value) for k in node.keywords]
    elif isinstance(node, ast.List | ast.Tuple) and node.elts:
        opening, closing = ('[', ']') if isinstance(node, ast.List) else ('(', ')')
        inner = [('', each) for each in node.elts]
    elif isinstance(node, ast.Dict) and node.keys:
        opening, closing = '{', '}'
        inner = [
            (f'{ast.unparse(key)}: ' if key else '**', value)
            for key, value in zip(node.keys, node.values, strict=True)
        ]
    else:
        return line
    space = ' ' * (indent + 4)
    parts = [_format(each, indent + 4, space + name, ',') for name, each in inner]
    return '\n'.join([f'{before}{opening}', *parts, f'{" " * indent}{closing}{after}'])
