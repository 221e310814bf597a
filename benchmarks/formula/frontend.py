"""The frontend's room as it is, with its application and its event loop under observation."""

from litestar.types import ASGIApp

from benchmarks.formula.records import FrontendRecord, write_record
from benchmarks.formula.settings import load_settings
from frontend import server
from frontend.app import build_app
from frontend.service import Service
from shared.config import FrontendConfig
from shared.mailbox import Mailbox


def run(config: FrontendConfig, mailbox: Mailbox) -> None:
    """Serves until the launcher says stop."""
    record = FrontendRecord()

    def build_measured_app(service: Service) -> ASGIApp:
        return record.measured(build_app(service))

    settings = load_settings(config.identity.run_directory)
    if settings.record:
        assert config.num_frontends == 1, "each would write over the other's record"
        assert "build_app" in vars(server), "nothing would be measured"
        server.build_app = build_measured_app  # type: ignore[attr-defined]  # it does not export
    server.run(config, mailbox)
    write_record(settings.record, record)
