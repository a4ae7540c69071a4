"""What is read beside something longer."""

from __future__ import annotations

import threading

import pytest

from pytest_imagefresh.core.errors import EvidenceError, NotStarted
from pytest_imagefresh.meanwhile import Meanwhile


def test_the_reading_runs_beside_and_only_once() -> None:
    threads: list[str] = []

    def read_once() -> int:
        threads.append(threading.current_thread().name)
        return len(threads)

    reading = Meanwhile(read_once)
    reading.start()
    reading.start()
    assert (reading.result(), threads) == (1, ["imagefresh-meanwhile"])


def test_what_was_not_started_or_not_begun_is_read_at_the_end() -> None:
    tries: list[str] = []

    def read_second_time() -> str:
        tries.append("try")
        if len(tries) == 1:
            raise NotStarted("every session is in use")
        return "read"

    reading = Meanwhile(read_second_time)
    reading.start()
    assert (reading.result(), len(tries)) == ("read", 2)
    assert Meanwhile(read_second_time).result() == "read"


def test_what_went_wrong_is_told_and_not_tried_again() -> None:
    tries: list[str] = []

    def fail_once() -> str:
        tries.append("try")
        if len(tries) == 1:
            raise EvidenceError("gone")
        return "read"

    reading = Meanwhile(fail_once)
    reading.start()
    with pytest.raises(EvidenceError, match="gone"):
        reading.result()
    assert len(tries) == 1
