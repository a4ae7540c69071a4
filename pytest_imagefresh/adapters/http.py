"""One HTTP GET on the staging port, as evidence."""

from __future__ import annotations

import http.client
import time

from pytest_imagefresh.core.evidence import Answer

_POLL_SECONDS = 0.02


def read_answer(address: str, port: int, path: str, *, timeout: float) -> Answer:
    """Return what one GET on a fresh connection brings back; redirects are not followed. `timeout` is in seconds.

    No answer is an answer too: status 0 and the problem in words.
    """
    host = f"[{address}]" if ":" in address else address
    url = f"http://{host}:{port}{path}"
    connection = http.client.HTTPConnection(address, port, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        return Answer(url, connection.getresponse().status)
    except (OSError, http.client.HTTPException) as error:
        return Answer(url, 0, str(error) or type(error).__name__)
    finally:
        connection.close()


def await_answer(address: str, port: int, path: str, *, timeout: float, seconds: float) -> Answer:
    """Return the first answer with HTTP 200, or the last other one when `seconds` are over.

    `timeout`, in seconds too, bounds each question.
    """
    give_up = time.monotonic() + seconds
    while (answer := read_answer(address, port, path, timeout=timeout)).status != 200 and time.monotonic() < give_up:
        time.sleep(_POLL_SECONDS)
    return answer
