"""What is the user's to change, told apart from what is ours to mend."""


class UserError(ValueError):
    """Something that the user gave is wrong: a config, data, a mesh, a checkpoint.

    The message is one sentence that says what is wrong, where, and what to change. Commands print it alone and end with 2. Every
    other exception is a bug, ours or a library's, and keeps its traceback.
    """
