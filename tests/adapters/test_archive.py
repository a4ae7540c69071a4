"""An engine's tar stream becomes git's own names of its files, or it is no evidence."""

from __future__ import annotations

import hashlib
import io
import tarfile
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_imagefresh.adapters.archive import read_archive
from pytest_imagefresh.core.content import EXECUTABLE, PLAIN, SPECIAL, SYMLINK, File
from pytest_imagefresh.core.errors import EvidenceError
from tests.fakes import folder_archive

BIG = 32 << 20


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def entry(name: str, content: bytes = b"", **attributes: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


def archive(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", encoding="utf-8", errors="surrogateescape") as written:
        for info, content in (entry("src", type=tarfile.DIRTYPE), *entries):
            written.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def test_files_are_named_as_git_names_them() -> None:
    content = archive(
        entry("src/plain", b"one", mode=0o644),
        entry("src/run", b"two", mode=0o755),
        entry("src/group", b"", mode=0o674),
        entry("src/sub", type=tarfile.DIRTYPE),
        entry("src/sub/link", type=tarfile.SYMTYPE, linkname="../pl\udcffain"),
        entry("src/again", type=tarfile.LNKTYPE, linkname="src/run"),
        entry("src/pipe", type=tarfile.FIFOTYPE),
        entry("src/null", type=tarfile.CHRTYPE),
        entry("src/odd\n\udcff ü", b"three"),
        entry("src/" + "long/" * 60 + "x", b"four"),
    )
    assert read_archive([content], "x") == {
        "plain": File(PLAIN, blob(b"one")),
        "run": File(EXECUTABLE, blob(b"two")),
        "group": File(PLAIN, blob(b"")),
        "sub/link": File(SYMLINK, blob(b"../pl\xffain")),
        "again": File(EXECUTABLE, blob(b"two")),
        "pipe": File(SPECIAL, ""),
        "null": File(SPECIAL, ""),
        "odd\n\udcff ü": File(PLAIN, blob(b"three")),
        "long/" * 60 + "x": File(PLAIN, blob(b"four")),
    }


@given(st.dictionaries(st.text("ab", min_size=1, max_size=3), st.binary(max_size=1500), max_size=4), st.data())
def test_how_the_stream_is_cut_does_not_matter(files: dict[str, bytes], data: st.DataObject) -> None:
    content = folder_archive("app", files)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=5)))
    chunks = [content[start:end] for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    assert read_archive(chunks, "x") == {name: File(PLAIN, blob(each)) for name, each in files.items()}


def test_a_single_file_has_no_name_below() -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as written:
        info, content = entry("src", b"one")
        written.addfile(info, io.BytesIO(content))
    assert read_archive([stream.getvalue()], "x") == {"": File(PLAIN, blob(b"one"))}


WHOLE = archive(entry("src/a", b"x" * 700), entry("src/b", b"y" * 700))
AFTER_A = 512 + 1536
END = 512 + 1536 * 2


@pytest.mark.parametrize(
    "length",
    [0, 100, 512, 600, 512 + 512, 512 + 512 + 699, AFTER_A, AFTER_A + 100, AFTER_A + 512, END, END + 512],
)
def test_an_archive_that_breaks_off_anywhere_is_no_evidence(length: int) -> None:
    with pytest.raises(EvidenceError, match="archive of /app/src cannot be read"):
        read_archive([WHOLE[:length]], "/app/src")


def test_the_shortest_whole_archive_is_read() -> None:
    assert len(read_archive([WHOLE[: END + 1024]], "x")) == 2


@pytest.mark.parametrize("place", [0, 300, AFTER_A, AFTER_A + 150, END, END + 600, len(WHOLE) - 1])
def test_a_broken_byte_between_files_is_no_evidence(place: int) -> None:
    broken = WHOLE[:place] + bytes([WHOLE[place] ^ 0x55]) + WHOLE[place + 1 :]
    with pytest.raises(EvidenceError):
        read_archive([broken], "x")


@pytest.mark.parametrize(
    "entries",
    [
        [entry("src/a", b"1"), entry("src/a", b"1")],
        [entry("src/a", type=tarfile.LNKTYPE, linkname="src/b"), entry("src/b")],
        [entry("src/a", type=tarfile.LNKTYPE, linkname="etc/passwd")],
    ],
    ids=["twice", "link before its file", "link out of the folder"],
)
def test_a_strange_archive_is_no_evidence(entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with pytest.raises(EvidenceError):
        read_archive([archive(*entries)], "x")


def test_errors_of_the_engine_pass_through() -> None:
    def chunks() -> Iterator[bytes]:
        yield WHOLE[:600]
        raise EvidenceError("the engine is gone")

    with pytest.raises(EvidenceError, match="the engine is gone"):
        read_archive(chunks(), "x")


def test_memory_does_not_grow_with_the_files() -> None:
    block = bytes(1 << 20)
    header = entry("src/big")[0]
    header.size = BIG
    many = [entry(f"src/{number}", mode=0o644) for number in range(5000)]
    small = archive(*many)

    def chunks() -> Iterator[bytes]:
        yield small[: 512 * 5001]
        yield header.tobuf()
        for _ in range(BIG >> 20):
            yield block
        yield bytes(1024)

    tracemalloc.start()
    files = read_archive(chunks(), "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(files) == 5001
    assert peak < BIG / 2
