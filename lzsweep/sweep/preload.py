"""What the forkserver imports once, so that a trial's process starts in milliseconds."""

from lzsweep.imports import import_lightning
from lzsweep.sweep.trial import ignore_signals

ignore_signals()  # before the imports of many seconds, in which a signal would end the forkserver
import_lightning()

import numpy.random  # noqa: E402, F401

import lzsweep.sweep.reporter  # noqa: E402
import lzsweep.train.data  # noqa: E402
import lzsweep.train.fit  # noqa: E402
import lzsweep.train.logger  # noqa: E402
import lzsweep.train.module  # noqa: E402
import lzsweep.train.schedule  # noqa: E402, F401
