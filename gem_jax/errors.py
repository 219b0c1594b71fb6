"""What is the user's to change, told apart from what is ours to mend."""

import os
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Something that the user gave is wrong: a config, data, a mesh, a checkpoint.

    The message is one sentence that says what is wrong, where, and what to change. Commands print it alone and end with 2. Every
    other exception is a bug, ours or a library's, and keeps its traceback.
    """


def exit_code(body: Callable[[], int]) -> int:
    """What a command ends with: what its body returns, or 2 after a UserError, which becomes one line on standard error.

    GEM_TRACEBACK=1 in the environment lets a UserError through with its traceback.
    """
    try:
        return body()
    except UserError as error:
        if os.environ.get("GEM_TRACEBACK") == "1":
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
