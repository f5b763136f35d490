import os
from pathlib import Path
from typing import Any

import pytest

from formats.errors import ImageExists, ImageInUse
from formats.host_file import HostFile
from vstore.transfer.draft import Draft


def fill(draft: Draft, data: bytes) -> None:
    descriptor = os.open(draft.name, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=draft.directory)
    os.write(descriptor, data)
    os.close(descriptor)


def test_a_file_has_its_name_only_when_it_is_complete(tmp_path: Path) -> None:
    with Draft(tmp_path / "disk") as draft:
        fill(draft, b"new")
        assert not (tmp_path / "disk").exists()
        draft.publish()
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]
    assert (tmp_path / "disk").read_bytes() == b"new"


def test_what_fails_leaves_neither_draft_nor_companions(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"of someone else")
    with pytest.raises(RuntimeError), Draft(tmp_path / "disk") as draft:  # noqa: PT012
        fill(draft, b"new")
        (tmp_path / "data").write_bytes(b"")
        draft.accompany("data")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_file_that_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(ImageExists), Draft(tmp_path / "disk") as draft:  # noqa: PT012
        fill(draft, b"new")
        (tmp_path / "disk").write_bytes(b"quicker")
        draft.publish()
    assert (tmp_path / "disk").read_bytes() == b"quicker"
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]


def test_by_force_an_old_file_is_replaced_unless_somebody_uses_it(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(512))
    with HostFile.from_path(path), pytest.raises(ImageInUse), Draft(path, force=True):
        pass
    with Draft(path, force=True) as draft:
        fill(draft, b"new")
        draft.publish()
    assert path.read_bytes() == b"new"


def test_a_draft_to_be_resumed_stays_and_is_found_again(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Draft(tmp_path / "disk", resume=True) as draft:  # noqa: PT012
        assert not draft.begun
        fill(draft, b"half")
        raise RuntimeError
    with Draft(tmp_path / "disk", resume=True) as draft:
        assert draft.begun
    with Draft(tmp_path / "another", resume=True) as draft:
        assert not draft.begun


@pytest.mark.parametrize("force", [False, True])
def test_the_file_is_durable_before_it_has_its_name_and_its_name_when_it_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    done: list[str] = []

    def recorded(name: str) -> None:
        call = getattr(os, name)

        def record(*arguments: Any, **options: Any) -> Any:
            synced = os.path.basename(os.readlink(f"/proc/self/fd/{arguments[0]}")) if name == "fsync" else ""
            done.append(f"{name} {synced}".strip())
            return call(*arguments, **options)

        monkeypatch.setattr(os, name, record)

    for name in ("fsync", "link", "unlink", "replace"):
        recorded(name)
    with Draft(tmp_path / "out", force=force) as draft:
        fill(draft, b"content")
        draft.publish()
    named = ["replace"] if force else ["link", "unlink"]
    assert done == [f"fsync {draft.name}", *named, f"fsync {tmp_path.name}"]
