"""Who may connect to a target's socket."""

import grp
import os
import pwd
import socket
import stat
from pathlib import Path

import pytest

from tests.store.world import World, alive, eventually
from vstore.store import Store
from vstore.store.access import MODES, SocketAccess
from vstore.store.errors import AlreadyExists, InvalidArgument
from vstore.vhost_user.listener import Permissions

ROOT = os.geteuid() == 0
USER = pwd.getpwnam("nobody") if ROOT else pwd.getpwuid(os.geteuid())  # whose VMM it may be
GROUP = grp.getgrgid(USER.pw_gid)


def test_by_default_the_daemon_s_own_user_alone_connects() -> None:
    assert SocketAccess.checked(None, None, None).permissions() == Permissions(0o600, None, None)


def test_a_group_that_is_named_gets_in_unless_the_mode_says_otherwise() -> None:
    assert SocketAccess.checked(None, None, GROUP.gr_name).permissions() == Permissions(0o660, None, GROUP.gr_gid)
    assert SocketAccess.checked("0600", None, GROUP.gr_name).permissions() == Permissions(0o600, None, GROUP.gr_gid)


def test_names_may_be_numbers() -> None:
    numbers = SocketAccess.checked("0660", str(USER.pw_uid), str(GROUP.gr_gid))
    assert numbers.permissions() == SocketAccess.checked("0660", USER.pw_name, GROUP.gr_name).permissions()


@pytest.mark.parametrize("mode", ["", "660", "0777", "0644", "0o660", "1660", "rw", "0660 "])
def test_a_mode_that_means_nothing_to_a_socket_is_refused(mode: str) -> None:
    with pytest.raises(InvalidArgument, match="choose 0600, 0660, 0666") as refusal:
        SocketAccess.checked(mode, None, None)
    assert refusal.value.field == "socket_mode"


@pytest.mark.parametrize(
    "name", ["no such name", "", "-1", "4294967295", "99999999999", "\0", "\ud800", "\u0661", "x" * 5000]
)
@pytest.mark.parametrize("field", ["socket_owner", "socket_group"])
def test_a_name_that_this_machine_does_not_know_is_refused(field: str, name: str) -> None:
    with pytest.raises(InvalidArgument, match="this machine knows no") as refusal:
        SocketAccess.checked(None, *((name, None) if field == "socket_owner" else (None, name)))
    assert refusal.value.field == field


@pytest.mark.parametrize(("field", "names"), [("socket_owner", ("0", None)), ("socket_group", (None, "0"))])
def test_only_root_gives_a_socket_away(
    monkeypatch: pytest.MonkeyPatch, field: str, names: tuple[str | None, str | None]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getegid", lambda: 1000)
    monkeypatch.setattr(os, "getgroups", lambda: [1000, 27])
    with pytest.raises(InvalidArgument, match="only root's daemon") as refusal:
        SocketAccess.checked(None, *names)
    assert refusal.value.field == field
    assert SocketAccess.checked(None, "1000", "27").permissions() == Permissions(0o660, 1000, 27)


@pytest.mark.parametrize("mode", MODES)
def test_the_socket_has_the_mode_and_the_group_that_were_asked_for(store: Store, mode: str) -> None:
    target, _ = store.create_target("web", socket_mode=mode, socket_owner=USER.pw_name, socket_group=GROUP.gr_name)
    assert (target.socket_mode, target.socket_owner, target.socket_group) == (mode, USER.pw_name, GROUP.gr_name)
    status = Path(target.socket).stat()
    assert stat.S_IMODE(status.st_mode) == int(mode, 8)
    assert (status.st_uid, status.st_gid) == (USER.pw_uid, GROUP.gr_gid)


def test_another_process_of_that_target_has_the_same_socket_again(store: Store, world: World) -> None:
    target, _ = store.create_target("web", socket_group=GROUP.gr_name)
    world.children[0].kill()
    eventually(lambda: store.show_target("web").process.restarts == 1 and alive(store.show_target("web").process.pid))
    eventually(lambda: store.show_target("web").process.state == "listening")
    status = Path(target.socket).stat()
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, GROUP.gr_gid)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as vmm:
        vmm.connect(target.socket)


def test_an_adopted_process_keeps_its_socket(store: Store, world: World) -> None:
    target, _ = store.create_target("web", socket_group=GROUP.gr_name)
    before = Path(target.socket).stat()
    world.close_store(store, stop_targets=False)
    again = world.open()
    eventually(lambda: again.show_target("web").process.state == "listening")
    assert again.show_target("web").process.pid == target.process.pid
    assert (Path(target.socket).stat().st_ino, Path(target.socket).stat().st_gid) == (before.st_ino, GROUP.gr_gid)


def test_the_same_target_with_other_access_is_another_one(store: Store) -> None:
    store.create_target("web")
    assert store.create_target("web", socket_mode="0600")[1] is False
    with pytest.raises(AlreadyExists, match="socket_mode '0600', not '0666'"):
        store.create_target("web", socket_mode="0666")


def test_a_group_that_is_gone_by_the_next_start_is_told_and_no_socket_is_made(
    store: Store, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, _ = store.create_target("web", socket_group=GROUP.gr_name)
    world.close_store(store, stop_targets=True)
    monkeypatch.setattr(grp, "getgrnam", lambda name: {}[name])
    again = world.open()
    eventually(lambda: again.show_target("web").process.problem is not None)
    assert f"this machine knows no '{GROUP.gr_name}'" in str(again.show_target("web").process.problem)
    assert not Path(target.socket).exists()


def test_the_way_to_the_socket_is_open_whatever_the_umask(world: World) -> None:
    before = os.umask(0o077)
    try:
        target, _ = world.open().create_target("web", socket_mode="0666")
    finally:
        os.umask(before)
    path = Path(target.socket)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    for directory in path.parents[:3]:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o755, directory
    assert path.parents[2] == world.runtime
