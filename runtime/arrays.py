"""Names for the array types that cross a border between modules."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]  # waveforms, spectra and everything that a graph takes
DoubleArray = NDArray[np.float64]
ComplexArray = NDArray[np.complex64]
