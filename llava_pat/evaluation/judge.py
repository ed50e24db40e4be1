"""A judge of free answers: any server with OpenAI's chat interface that the user names. Nothing is sent without one."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

from llava_pat.types import DataError

KEY_VARIABLE = "OPENAI_API_KEY"
_RETRIED = frozenset((429, 500, 502, 503, 504))


class JudgeError(DataError):
    """The judge refuses or is out of reach. The answers are there: score again later."""


@dataclass(frozen=True)
class Judge:
    """Where to ask, and whom. The key is read from the environment (OPENAI_API_KEY) and never written anywhere."""

    url: str
    """Base URL, such as https://api.openai.com/v1 or http://127.0.0.1:8000/v1."""
    model: str
    """The originals used gpt-4-0314 (LLaVA-Bench) and gpt-4-0613 (MM-Vet); another judge gives other figures."""
    tries: int = 5
    wait_seconds: float = 2.0
    timeout_seconds: float = 120.0

    def ask(self, messages: list[dict[str, str]], *, temperature: float, max_tokens: int) -> str:
        """The judge's reply.

        Raises:
            JudgeError: the server refuses, or is out of reach after `tries` attempts; the message has its words.
        """
        body = json.dumps(
            {"model": self.model, "messages": messages, "temperature": temperature, "max_tokens": max_tokens}
        ).encode()
        headers = {"Content-Type": "application/json"}
        if KEY_VARIABLE in os.environ:
            headers["Authorization"] = f"Bearer {os.environ[KEY_VARIABLE]}"
        address = f"{self.url.rstrip('/')}/chat/completions"
        problem = ""
        for attempt in range(self.tries):
            if attempt:
                time.sleep(self.wait_seconds * 2 ** (attempt - 1))
            try:
                request = urllib.request.Request(address, body, headers)
                with urllib.request.urlopen(request, timeout=self.timeout_seconds) as reply:
                    return json.load(reply)["choices"][0]["message"]["content"]
            except urllib.error.HTTPError as error:
                problem = f"{error.code} {error.read().decode(errors='replace')[:300]}"
                if error.code not in _RETRIED:
                    break
            except (urllib.error.URLError, TimeoutError) as error:
                problem = str(error)
            except (KeyError, IndexError, json.JSONDecodeError) as error:
                problem = f"its reply is no chat completion ({type(error).__name__}: {error})"
                break
        raise JudgeError(f"the judge {self.model} at {address} did not answer: {problem}")
