"""The one exception that means: the user's input or configuration is wrong."""


class InputError(ValueError):
    """Names the file, line or key, what was expected there, and the way out. A recipe prints it and exits with 2.

    It is a class of its own so that a recipe can tell it from a `ValueError` that is a defect of ours and deserves
    its traceback.
    """
