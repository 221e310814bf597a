"""Starts one room of a formula server: `shared/process.py` with another worker and frontend."""

import logging
import os
import sys

from shared import process
from shared.config import FrontendConfig, WorkerConfig
from shared.process import ROOM_KINDS, RoomKind

if __name__ == "__main__":
    ROOM_KINDS["worker"] = RoomKind("benchmarks.formula.worker:run", WorkerConfig)
    ROOM_KINDS["frontend"] = RoomKind("benchmarks.formula.frontend:run", FrontendConfig)
    status = process.main(sys.argv[1])
    logging.shutdown()
    os._exit(status)  # as shared/process.py does
