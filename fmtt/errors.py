"""The one error that means: what the user gave is wrong, and this line says how to put it right."""


class UserError(ValueError):
    """A wrong argument, key or file. Command lines print it as one line and exit with status 2."""
