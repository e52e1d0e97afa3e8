"""`python -m lzsweep` and the `lzsweep` command."""

from __future__ import annotations

import sys

from lzsweep.cli import main

if __name__ == "__main__":
    sys.exit(main())
