"""What the forkserver imports once, so that a trial's process starts in milliseconds."""

from types import ModuleType

from lzsweep.imports import stand_in
from lzsweep.sweep.trial import ignore_signals

ignore_signals()  # before the imports of many seconds, in which a signal would end the forkserver

# All that torchmetrics wants of it is to add the name `hamming`, for a package that few have; it
# takes half as long as torch.
_signal = ModuleType("scipy.signal")
_signal.hamming = None  # type: ignore[attr-defined]
with stand_in("scipy.signal", _signal):
    import lzsweep.sweep.judge
    import lzsweep.train.fit  # noqa: F401
