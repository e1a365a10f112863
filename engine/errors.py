"""The one base of all errors that a user's input can cause."""


class InputError(ValueError):
    """What was given is wrong. The message names it, its value, the rule, and the nearest valid thing."""
