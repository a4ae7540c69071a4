"""One HTTP GET on the staging port, as evidence."""

from __future__ import annotations

import http.client

from pytest_imagefresh.core.evidence import Answer


def read_answer(address: str, port: int, path: str, *, timeout: float) -> Answer:
    """Return what one GET on a fresh connection brings back; redirects are not followed. `timeout` is in seconds.

    No answer is an answer too: status 0 and the problem in words.
    """
    url = f"http://{address}:{port}{path}"
    connection = http.client.HTTPConnection(address, port, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        return Answer(url, connection.getresponse().status)
    except (OSError, http.client.HTTPException) as error:
        return Answer(url, 0, str(error) or type(error).__name__)
    finally:
        connection.close()
