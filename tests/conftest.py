"""What all tests need before they import anything."""

import os
from pathlib import Path

from hypothesis import settings

# Without a GPU, Triton's kernels run in its interpreter. Triton reads this when it is imported,
# which torch may do in any test.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

# How long an example takes depends on what else the machine does.
settings.register_profile("without deadlines")
settings.load_profile("without deadlines")
