"""`python -m lzsweep` and the `lzsweep` command."""

from __future__ import annotations

import atexit
import gc
import sys

from lzsweep.imports import no_collection


def main() -> int:
    """Run the command line that was typed; its exit code."""
    with no_collection():
        from lzsweep import cli
    # Else Python looks once more, at its end, for garbage among all that was imported.
    atexit.register(gc.freeze)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
