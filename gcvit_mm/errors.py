"""The exceptions that the tools print without a traceback."""


class UserError(RuntimeError):
    """A mistake that the person at the terminal can fix.

    The message is one line: what is wrong, in which file or key, and what to do. The tools
    print it and exit with status 1. Any other exception is a bug, and shows its traceback.
    """


class ArgumentError(UserError, ValueError):
    """An argument that is not among the valid choices, which the message lists."""
