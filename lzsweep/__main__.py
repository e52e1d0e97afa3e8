"""`python -m lzsweep` and the `lzsweep` command."""

from __future__ import annotations

import atexit
import gc
import sys

from lzsweep.imports import no_collection
from lzsweep.sweep.forkserver import start_forkserver


def main() -> int:
    """Run the command line that was typed; its exit code."""
    if {"-m", "--multirun"} & set(sys.argv[1:]):
        # What trials import takes as long as all that comes before them, and goes on beside it.
        start_forkserver()
    with no_collection():
        from lzsweep import cli
    # Else Python looks once more, at its end, for garbage among all that was imported.
    atexit.register(gc.freeze)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
