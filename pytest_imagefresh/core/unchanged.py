"""The declared content of a running container: nothing was changed in it, and nothing lies over it."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pytest_imagefresh.core.content import Place, folders_of, is_content, shown, some_of
from pytest_imagefresh.core.evidence import Change, Container, Mount
from pytest_imagefresh.core.settings import Target
from pytest_imagefresh.core.verdict import Verdict


def folders_in_doubt(changes: Sequence[Change], declared: Iterable[str]) -> list[str]:
    """Return the declared folders, and those above them, of which the changes do not tell whether they still are some.

    A folder counts as changed when something in it did, which is then listed too; when only its own times did; and when
    something else, such as a symlink, took its place.
    """
    above = _folders_with_changes(changes)
    changed = {change.path for change in changes if change.kind != "deleted"} - above
    return [folder for folder in folders_of(declared) if folder in changed]


def check_unchanged(
    container: Container, changes: Sequence[Change], places: Mapping[str, Place], target: Target
) -> Verdict:
    """Accept when every declared file of the running container is the image's own.

    1. no mount lies over declared content, where no change would be seen; 2. nothing below it was changed, deleted or
    added, but for additions that `content_ignore` allows; 3. each declared folder is still one. `places` is what the
    container has at the folders in doubt. Where nothing is declared, nothing is judged, and the reason says so.
    """
    if not target.content:
        return Verdict(
            "no content is declared, so that no file that was changed since the start was looked at; "
            f"declare it in [targets.{target.name}.content]",
            container.image_id,
            "unchanged files",
            "not declared",
        )
    problems = [*_covered(container.mounts, target), *_touched(changes, target), *_replaced(places)]
    if problems:
        seen = some_of(problems)
        return Verdict(
            f"container {container.name} does not run the files of its image: {seen}; expected none; "
            "recreate it from its image, and list what may appear there in content_ignore",
            None,
            "unchanged files",
            seen,
        )
    folders = ", ".join(map(shown, target.content))
    return Verdict(
        f"no file below {folders} was changed since the start", container.image_id, "unchanged files", "unchanged"
    )


def _covered(mounts: Iterable[Mount], target: Target) -> Iterator[str]:
    """Yield every mount that hides declared content, or a part of it that may not differ."""
    for mount in mounts:
        over = any(_is_at_or_below(folder, mount.path) for folder in target.content)
        if over or is_content(mount.path, target.content, target.content_ignore):
            yield f"{shown(mount.path)} (a {mount.kind} lies over it)"


def _is_at_or_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _touched(changes: Sequence[Change], target: Target) -> Iterator[str]:
    above, folders = _folders_with_changes(changes), set(folders_of(target.content))
    for change in changes:
        if change.path in folders:
            # Deleted, and perhaps made anew: all that was in it is gone.
            touched = change.kind == "deleted"
        elif change.kind == "deleted" or change.path not in above:
            ignore = target.content_ignore if change.kind == "added" else ()
            touched = is_content(change.path, target.content, ignore)
        else:
            touched = False
        if touched:
            yield f"{shown(change.path)} ({change.kind})"


def _replaced(places: Mapping[str, Place]) -> Iterator[str]:
    for path, place in places.items():
        if place.kind != "folder":
            yield f"{shown(path)} (is now {f'a {place.kind}' if place.kind else 'nothing'})"


def _folders_with_changes(changes: Sequence[Change]) -> set[str]:
    """Return the folders in which something changed: what they hold is judged by itself."""
    return {posixpath.dirname(change.path) for change in changes}
