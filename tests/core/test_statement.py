"""What a verdict states: the bytes that the hook prints anew, valid in-toto, and nothing else is read as one."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement as InToto

from pytest_imagefresh.core.errors import EvidenceError
from pytest_imagefresh.core.identity import ImageId, Revision, RunId
from pytest_imagefresh.core.statement import Statement, pack_verdict, parse_statement
from tests.hook import verdicts

GOOD = Statement(
    prod_image="shop-shop",
    image_id=ImageId("sha256:" + "a" * 64),
    repo="shop",
    revision=Revision("1" * 40),
    principal="gate@shop",
    time="2026-01-02T03:04:05Z",
    run_id=RunId("20260102T030405Z-89abcdef"),
    prod_service="shop",
    prod_port=8500,
    engine_id="ABCD:EFGH",
    prod_runs="sha256:" + "b" * 64,
    compose_sha256="c" * 64,
)
HEX = "0123456789abcdef"


@st.composite
def statements(draw: st.DrawFn) -> Statement:
    def word(letters: str, least: int, most: int) -> str:
        return draw(st.text(letters, min_size=least, max_size=most))

    return Statement(
        prod_image=word("abc-./:0", 1, 40),
        image_id=ImageId("sha256:" + word(HEX, 64, 64)),
        repo=word("abcXYZ._-", 1, 40),
        revision=Revision(word(HEX, 40, 40)),
        principal="a" + word("abc@.+-_9", 0, 40),
        time=f"{draw(st.datetimes()):%Y-%m-%dT%H:%M:%SZ}".zfill(20),
        run_id=RunId(f"{draw(st.integers(10**7, 10**8 - 1))}T030405Z-{word(HEX, 8, 8)}"),
        prod_service=word("abc._-", 1, 40),
        prod_port=draw(st.integers(1, 65535)),
        engine_id=word("ABC:-_9", 1, 60),
        prod_runs=draw(st.sampled_from(["", "sha256:" + "d" * 64])),
        compose_sha256=word(HEX, 64, 64),
    )


@given(statements())
def test_what_is_rendered_is_parsed_again(statement: Statement) -> None:
    text = statement.render()
    assert parse_statement(text) == statement
    assert text.count(b"\n") == 1


def test_it_is_what_the_tests_of_the_hook_print_by_themselves() -> None:
    said = verdicts.statement(
        id=GOOD.image_id.digest,
        revision=GOOD.revision.hex,
        time=GOOD.time,
        run=GOOD.run_id.text,
        port=8500,
        engine="ABCD:EFGH",
        runs=GOOD.prod_runs,
        compose=GOOD.compose_sha256,
    )
    assert GOOD.render() == verdicts.render(said)


@pytest.mark.parametrize("text", [GOOD.render(), GOOD.test_result({"a": "passed"}, b"{}")], ids=["svr", "test-result"])
def test_it_is_valid_in_toto(text: bytes) -> None:
    message = json_format.Parse(text, statement_pb2.Statement())
    InToto.copy_from_pb(message).validate()
    assert {subject.name: dict(subject.digest) for subject in message.subject} == {
        "shop-shop": {"sha256": "a" * 64},
        "shop": {"gitCommit": "1" * 40},
    }


def test_the_predicate_is_a_simple_verification_result() -> None:
    """Fields as in-toto's SVR v0.2 requires them."""
    whole = json.loads(GOOD.render())
    assert whole["predicateType"] == "https://in-toto.io/attestation/svr/v0.2"
    assert whole["predicate"]["verifier"] == {"id": "urn:imagefresh:gate:1:gate@shop", "policies": []}
    assert whole["predicate"]["timeCreated"] == GOOD.time
    assert whole["predicate"]["properties"] == ["IMAGEFRESH_GATE_COMPLETE"]


@pytest.mark.parametrize(
    "change",
    [
        {"prod_image": 'shop","x":"'},
        {"prod_image": "shop\n"},
        {"prod_image": ""},
        {"repo": ""},
        {"prod_service": ""},
        {"engine_id": ""},
        {"repo": "shöp"},
        {"principal": ""},
        {"principal": "*"},
        {"principal": 'gate"'},
        {"time": "2026-01-02 03:04:05"},
        {"time": "2026-01-02T03:04:05+00:00"},
        {"prod_service": "a\\b"},
        {"prod_port": 0},
        {"prod_port": 65536},
        {"prod_port": True},
        {"prod_port": 8500.5},
        {"engine_id": "a b"},
        {"prod_runs": "<none>"},
        {"prod_runs": "shop:latest"},
        {"compose_sha256": ""},
        {"compose_sha256": "C" * 64},
    ],
    ids=str,
)
def test_what_the_hook_could_not_print_is_no_statement(change: dict[str, object]) -> None:
    with pytest.raises(EvidenceError, match="not a statement"):
        replace(GOOD, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"\n", b""),
        (b"\n", b"\n\n"),
        (b'{"_type"', b' {"_type"'),
        (b'"policies":[]', b'"policies":[1]'),
        (b'"contract":1', b'"contract":2'),
        (b'"contract":1', b'"more":1,"contract":1'),
        (b"Statement/v1", b"Statement/v2"),
        (b"svr/v0.2", b"svr/v0.1"),
        (b"GATE_COMPLETE", b"GATE"),
        (b'"prod_port":8500', b'"prod_port":"8500"'),
        (b'"prod_port":8500', b'"prod_port":8.5e3'),
        (b'"prod_port":8500', b'"prod_port":8500.5'),
        (b'"prod_port":8500', b'"prod_port":true'),
        (b'"prod_port":8500', b'"prod_port":1,"prod_port":8500'),
        (b'"name":"shop"', b'"name":""'),
        (b"1" * 40, b"1" * 12),
        (b"gitCommit", b"sha1"),
        (b"urn:imagefresh:gate:1:", b"urn:imagefresh:gate:2:"),
        (b'"subject":[', b'"subject":[{},'),
        (GOOD.render(), b"[]"),
        (GOOD.render(), b"null"),
        (GOOD.render(), b"\xff"),
        (GOOD.render(), b""),
        (GOOD.render(), GOOD.render() * 2),
        (GOOD.render(), b"[" * 100_000),
    ],
    ids=lambda part: str(part)[:60],
)
def test_any_other_bytes_are_no_statement(before: bytes, after: bytes) -> None:
    text = GOOD.render()
    assert before in text
    with pytest.raises(EvidenceError):
        parse_statement(text.replace(before, after))


def test_the_test_result_names_what_passed_and_what_did_not() -> None:
    predicate = json.loads(GOOD.test_result({"b": "passed", "a": "passed", "c": "left out"}, b"{}"))["predicate"]
    assert (predicate["result"], predicate["passedTests"], predicate["failedTests"]) == ("FAILED", ["a", "b"], ["c"])
    assert predicate["configuration"][0]["name"] == "settings.json"
    assert json.loads(GOOD.test_result({"b": "passed"}, b"{}"))["predicate"]["result"] == "PASSED"


def test_no_test_at_all_is_no_pass() -> None:
    assert json.loads(GOOD.test_result({}, b"{}"))["predicate"]["result"] == "FAILED"


def test_the_test_result_names_the_settings_by_their_bytes() -> None:
    """A ResourceDescriptor: the SHA-256 of the file as it lies in the evidence."""
    (settings,) = json.loads(GOOD.test_result({"b": "passed"}, b"{}\n"))["predicate"]["configuration"]
    assert settings == {"name": "settings.json", "digest": {"sha256": hashlib.sha256(b"{}\n").hexdigest()}}


@given(st.binary(max_size=600))
def test_a_packed_verdict_is_both_in_one_line_of_base64(signature: bytes) -> None:
    packed = pack_verdict(GOOD.render(), signature)
    assert base64.b64decode(packed, validate=True) == GOOD.render() + signature


def test_a_verdict_that_the_hook_would_not_take_is_refused_here() -> None:
    with pytest.raises(EvidenceError, match="6000 at most"):
        pack_verdict(GOOD.render(), b"x" * 5000)
