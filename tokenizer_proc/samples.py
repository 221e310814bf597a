"""Sound as numbers: one channel, full amplitude is 1."""

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]
