"""What the forkserver imports once, so that a trial's process starts in milliseconds.

The order matters: the signals are taken away first. A terminal's Ctrl-C and a cluster's signals
reach every process of the group; the worker alone acts on them and tells its trials by pipe.
"""

import signal

for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(_number, signal.SIG_IGN)

import lzsweep.sweep.trial  # noqa: E402
import lzsweep.train.fit  # noqa: E402, F401
