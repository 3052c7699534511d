"""The exceptions that the tools print without a traceback."""


class UserError(RuntimeError):
    """A mistake that the person at the terminal can fix.

    The message is one line: what is wrong, in which file or key, and what to do. The tools
    print it and exit with status 1. Any other exception is a bug, and shows its traceback.
    """


class ArgumentError(UserError, ValueError):
    """An argument that is not among the valid choices, which the message lists."""


JOINERS = '\u200c\u200d'
"""Invisible characters that the spelling of Persian, Hindi and other languages needs."""


def printable(text: str) -> str:
    """Escape the control characters of a text, such as a name in a file of somebody else."""
    return ''.join(c if c.isprintable() or c in JOINERS else escaped(c) for c in text)


def printable_lines(text: str) -> str:
    """Escape the control characters of a text except the ends of its lines."""
    return '\n'.join(map(printable, text.split('\n')))


def escaped(text: str) -> str:
    """Write a text in ASCII, with Python's escape sequences."""
    return text.encode('unicode_escape').decode()
