"""The one exception that commands turn into a line of text."""


class UserError(Exception):
    """Something the user can put right; ends the command with one line and exit code 2."""
