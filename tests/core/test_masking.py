"""What is masked, and what stays readable."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_imagefresh.core.masking import MASK, Masker


def masker() -> Masker:
    found = Masker(["secret", "token"])
    found.learn(
        {"API_TOKEN": "s3cr3t-value", "MY_SECRET": "s3cr3t", "PATH": "/usr/bin", "EMPTY_TOKEN": "", "T_TOKEN": "1"}
    )
    return found


def test_values_of_secret_names_are_masked_wherever_they_stand() -> None:
    assert masker()("a s3cr3t-value b s3cr3t c /usr/bin 1") == f"a {MASK} b {MASK} c /usr/bin 1"


def test_passwords_in_urls_are_masked() -> None:
    assert masker()("https://me:hunter2@host/x") == f"https://me:{MASK}@host/x"


def test_data_is_masked_by_key_by_assignment_and_by_value() -> None:
    data = {"Env": ["OTHER_TOKEN=abc", "A=1"], "token": "abc", "x": [{"y": "s3cr3t"}], "n": 1, "none": None}
    assert masker().deep(data) == {
        "Env": [f"OTHER_TOKEN={MASK}", "A=1"],
        "token": MASK,
        "x": [{"y": MASK}],
        "n": 1,
        "none": None,
    }


def test_without_names_nothing_looks_secret() -> None:
    found = Masker([])
    found.learn({"API_TOKEN": "s3cr3t-value"})
    assert found("s3cr3t-value") == "s3cr3t-value"


@given(st.text(min_size=4), st.text(), st.text())
def test_a_known_secret_never_comes_out(secret: str, before: str, after: str) -> None:
    found = Masker(["token"])
    found.learn({"token": secret})
    masked = found(before + secret + after)
    assert secret not in masked.replace(MASK, "\0")
