"""What the launcher says of its settings before the rooms start, and its own name."""

import logging

from shared.launching import flags

PROGRAM = "transformers-openai-api"

logger = logging.getLogger("launcher")


def log_what_is_not_used(settings: flags.Settings, hostname: str) -> None:
    """Names what was given and changes nothing; `hostname` is the variable HOSTNAME."""
    for given in settings.without_effect:
        logger.warning("%s has no effect", given)
    if hostname and settings.origins["host"] == flags.DEFAULT:
        logger.info(
            "HOSTNAME=%s is no address of this machine and is not used: listening on %s",
            hostname, settings.config.launcher.host,
        )  # fmt: skip
