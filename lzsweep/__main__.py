"""`python -m lzsweep` and the `lzsweep` command."""

from __future__ import annotations

import atexit
import os
import sys


def main() -> int:
    """Run the command line that was typed; its exit code."""
    code = 1  # of a traceback

    def leave() -> None:
        """End without Python's own last look at all that was imported.

        It takes a second, and libraries complain to the user about what it finds of them.
        """
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:
            return  # Python's own end tells of it
        os._exit(code)

    atexit.register(leave)  # before all others, so that it is called after them

    from lzsweep.imports import no_collection
    from lzsweep.sweep.forkserver import start_forkserver

    if {"-m", "--multirun"} & set(sys.argv[1:]):
        # What trials import takes as long as all that comes before them, and goes on beside it.
        start_forkserver()
    with no_collection():
        from lzsweep import cli
    try:
        code = cli.main()
    except SystemExit as end:  # Hydra's and argparse's own
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    return code


if __name__ == "__main__":
    sys.exit(main())
