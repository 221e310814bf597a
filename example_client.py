"""Asks a running server over plain HTTP: its models, an answer at once, an answer as a stream.

    python example_client.py --prompt "What is 17 + 25?"

It needs `requests` and nothing else, and shows how to read a stream: by its events, up to [DONE].
"""

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

import requests

# Seconds to connect, then between two pieces of an answer: a silent stream has a comment every 15,
# and one that does not stream is silent until it is complete.
TIMEOUTS = (5.0, 600.0)
DONE = "[DONE]"


class ServerRefusal(Exception):
    """The server's own sentence about what went wrong."""


class Client:
    """One server's API."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self._url = base_url.rstrip("/").removesuffix("/v1") + "/v1"
        self._session = requests.Session()
        if api_key:
            self._session.headers["Authorization"] = f"Bearer {api_key}"

    def models(self) -> list[str]:
        """The names to put into `model`."""
        response = self._checked(self._session.get(f"{self._url}/models", timeout=TIMEOUTS))
        return [model["id"] for model in response.json()["data"]]

    def answer(self, model: str, prompt: str) -> str:
        """The whole answer."""
        choice = self._chat(model, prompt, stream=False).json()["choices"][0]
        return str(choice["message"]["content"])

    def stream(self, model: str, prompt: str) -> Iterator[str]:
        """The answer piece by piece, as the model writes it."""
        with self._chat(model, prompt, stream=True) as response:
            for data in events(response.iter_lines()):
                if data == DONE:
                    return
                chunk = json.loads(data)
                if "error" in chunk:  # the status was sent long ago, so a failure is an event
                    raise ServerRefusal(chunk["error"]["message"])
                for choice in chunk["choices"]:
                    yield choice["delta"].get("content") or ""
        raise ServerRefusal(f"The stream ended without {DONE}: the answer is not complete.")

    def _chat(self, model: str, prompt: str, *, stream: bool) -> requests.Response:
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "stream": stream,
        }
        url = f"{self._url}/chat/completions"
        response = self._session.post(url, json=body, stream=stream, timeout=TIMEOUTS)
        return self._checked(response)

    def _checked(self, response: requests.Response) -> requests.Response:
        if response.ok:
            return response
        raise ServerRefusal(f"{response.status_code}: {_message(response)}")


def events(lines: Iterator[bytes]) -> Iterator[str]:
    """The data of each server-sent event: an empty line ends one, and comments are passed over."""
    data: list[str] = []
    for line in lines:
        if line.startswith(b"data:"):
            data.append(line.removeprefix(b"data:").removeprefix(b" ").decode())
        elif not line and data:
            yield "\n".join(data)
            data = []


def _message(response: requests.Response) -> str:
    """What the body says: the message of OpenAI's error object, if it is one."""
    try:
        body: Any = response.json()
        return str(body["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return response.reason


def show(client: Client, prompt: str) -> None:
    """Prints the models, then the first one's answer to the prompt, whole and as a stream."""
    models = client.models()
    print("Models:", ", ".join(models))
    print("Answer:", client.answer(models[0], prompt))
    print("Stream: ", end="")
    for piece in client.stream(models[0], prompt):
        print(piece, end="", flush=True)
    print()


def main() -> str | int:
    """Returns what `sys.exit` takes: 0, or one sentence about what went wrong."""
    parser = argparse.ArgumentParser(description="Asks an OpenAI-compatible server a question.")
    parser.add_argument("--base-url", default="http://127.0.0.1:7088", help="default: %(default)s")
    parser.add_argument("--api-key", default="", help="sent as a bearer token; default: none")
    parser.add_argument("--prompt", default="What is 17 + 25?", help="default: %(default)s")
    given = parser.parse_args()
    try:
        show(Client(given.base_url, given.api_key), given.prompt)
    except ServerRefusal as error:
        return f"The server said: {error}"
    except requests.ConnectionError:
        return f"No server answers at {given.base_url}: start one, or give another --base-url."
    except requests.RequestException as error:
        return f"The request failed: {error}"
    return 0


if __name__ == "__main__":
    sys.exit(main())
