"""Exit status 0 if the server in this container is healthy: its /health answers 200.

It asks on the port that PORT sets, as the server does; no proxy of the environment is used.
"""

import http.client
import os
import sys

DEFAULT_PORT = 7088
SECONDS = 4.0  # below the time that the health check itself is given


def is_healthy(port: int) -> bool:
    """Whether /health answers 200 in time."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:  # nobody listens yet
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(not is_healthy(int(os.environ.get("PORT") or DEFAULT_PORT)))
