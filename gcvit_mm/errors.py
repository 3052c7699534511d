"""The exceptions that the tools print without a traceback."""


class UserError(RuntimeError):
    """A mistake that the person at the terminal can mend.

    The message is one line: what is wrong, in which file or key, and what to do. The scripts
    under ``tools/`` print it and exit with status 1; anything else is a bug, with a traceback.
    """


class ArgumentError(UserError, ValueError):
    """An argument that is none of the valid choices, which the message lists."""
