"""What the forkserver imports once, so that a trial's process starts in milliseconds."""

import gc

from lzsweep.imports import import_lightning, no_collection
from lzsweep.sweep.trial import ignore_signals

ignore_signals()  # before the imports of many seconds, in which a signal would end the forkserver

with no_collection():
    import_lightning()

    import numpy.random  # noqa: F401

    import lzsweep.sweep.reporter
    import lzsweep.train.data
    import lzsweep.train.fit
    import lzsweep.train.logger
    import lzsweep.train.module
    import lzsweep.train.schedule  # noqa: F401
    from lzsweep.train.decode import Decoder

Decoder()  # its tables are made once for all trials
gc.freeze()  # no trial's collector looks at all this, and so makes a copy of its memory
