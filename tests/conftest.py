"""What all tests need before they import anything."""

import os
from pathlib import Path

# Without a GPU, Triton's kernels run in its interpreter. Triton reads this when it is imported,
# which torch may do in any test.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
