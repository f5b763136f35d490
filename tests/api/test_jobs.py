"""Long work over HTTP and on the command line: 202 and a job, waiting, cancelling, exit codes; and snapshots."""

import json
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.api.test_cli import Command, run
from tests.store.test_jobs import Gate, gate, plan
from tests.store.world import MIB, World
from vstore.store import Store

__all__ = ["gate", "run"]

IMAGES = "/v1/pools/default/images"


@pytest.fixture
def images(client: TestClient) -> TestClient:
    """base (raw) <- top (qcow2), 1 MiB."""
    assert client.put(f"{IMAGES}/base", json={"virtual_size_bytes": MIB}).status_code == 201
    assert client.post(f"{IMAGES}/base/clone", json={"name": "top"}).status_code == 201
    return client


def test_long_work_is_accepted_with_its_job_and_waited_for(images: TestClient) -> None:
    accepted = images.post(f"{IMAGES}/top/convert", json={"into": "new", "format": "raw"})
    assert accepted.status_code == 202
    place = accepted.headers["location"]
    assert place == f"/v1/jobs/{accepted.json()['id']}"
    ended = images.get(f"{place}?wait=30")
    assert ended.headers["etag"] == f'"{ended.json()["revision"]}"'
    assert (ended.json()["state"], ended.json()["result"]) == ("succeeded", {"image": "new", "virtual_size_bytes": MIB})
    assert images.get(f"{IMAGES}/new").json()["format"] == "raw"
    assert [job["id"] for job in images.get("/v1/jobs?state=succeeded").json()["items"]] == [ended.json()["id"]]


def test_waiting_ends_when_its_time_is_over_and_holds_no_thread(client: TestClient, store: Store, gate: Gate) -> None:
    job = store.jobs.start(plan(gate))
    began = time.monotonic()
    assert client.get(f"/v1/jobs/{job}?wait=0.3").json()["state"] in ("queued", "running")
    assert time.monotonic() - began >= 0.3
    cancelled = client.delete(f"/v1/jobs/{job}")
    assert cancelled.status_code == 202
    assert client.get(f"/v1/jobs/{job}?wait=30").json()["state"] == "cancelled"
    assert client.delete(f"/v1/jobs/{job}").json()["state"] == "cancelled"


@pytest.mark.parametrize("wait", ["-1", "61", "x", "nan", "1e9"])
def test_a_wait_that_cannot_be_is_refused(client: TestClient, wait: str) -> None:
    refused = client.get(f"/v1/jobs/x?wait={wait}")
    assert (refused.status_code, refused.json()["errors"][0]["parameter"]) == (422, "wait")


def test_a_job_that_is_not_there_is_not_found(client: TestClient) -> None:
    for method in ("GET", "DELETE"):
        refused = client.request(method, "/v1/jobs/nothing")
        assert (refused.status_code, refused.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("verb", "body", "status", "code"),
    [
        ("check", {"repair": "some"}, 422, "invalid_argument"),
        ("rebase", {}, 422, "invalid_request"),
        ("rebase", {"parent": "top"}, 422, "invalid_argument"),
        ("rebase", {"parent": "nothing"}, 404, "not_found"),
        ("convert", {"into": "base"}, 409, "already_exists"),
        ("convert", {"into": "new", "options": {"cluster_size": 1}}, 422, "invalid_request"),
        ("compare", {"other": "nothing"}, 404, "not_found"),
        ("bench", {"depth": 0}, 422, "invalid_argument"),
        ("clone", {"name": "base"}, 409, "already_exists"),
        ("clone", {"name": "new", "format": "raw"}, 422, "invalid_argument"),
    ],
)
def test_what_cannot_be_is_refused_before_there_is_a_job(
    images: TestClient, verb: str, body: dict[str, object], status: int, code: str
) -> None:
    refused = images.post(f"{IMAGES}/top/{verb}", json=body)
    assert (refused.status_code, refused.json()["code"]) == (status, code), refused.text
    assert images.get("/v1/jobs").json()["items"] == []


def test_work_on_a_stale_tag_is_412_and_starts_nothing(images: TestClient) -> None:
    stale = {"If-Match": '"7"'}
    for verb, body in (("check", {"repair": "all"}), ("rebase", {"parent": None}), ("commit", {})):
        refused = images.post(f"{IMAGES}/top/{verb}", json=body, headers=stale)
        assert (refused.status_code, refused.json()["code"]) == (412, "stale")
    assert images.get("/v1/jobs").json()["items"] == []


def test_a_snapshot_is_put_got_and_deleted_as_any_object(images: TestClient) -> None:
    path = f"{IMAGES}/top/snapshots/s1"
    made = images.put(path)
    assert made.status_code == 201
    assert images.put(path).status_code == 200
    assert images.put(path, headers={"If-None-Match": "*"}).status_code == 412
    assert images.get(path).json() == made.json()
    assert [each["name"] for each in images.get(f"{IMAGES}/top/snapshots").json()["items"]] == ["s1"]
    job = images.post(f"{path}/apply")
    assert images.get(f"{job.headers['location']}?wait=30").json()["state"] == "succeeded"
    assert images.delete(path, headers={"If-Match": '"5"'}).status_code == 412
    assert images.delete(path, headers={"If-Match": made.headers["etag"]}).status_code == 204
    assert images.delete(path).status_code == 204
    assert images.get(path).status_code == 404


def test_info_and_map_have_the_keys_of_qemu_img(images: TestClient) -> None:
    assert images.get(f"{IMAGES}/top/info").json()["backing-filename"] == "base.raw"
    first = images.get(f"{IMAGES}/top/map?limit=1").json()
    assert set(first["items"][0]) >= {"start", "length", "depth", "present", "zero", "data"}


def test_the_command_line_goes_through_the_life_of_a_chain(run: Command, world: World) -> None:
    assert run("image", "create", "base", "1M") == 0
    assert run("image", "create", "mid", "--parent", "base", "-o", "cluster_size=128k", "-o", "extended_l2=on") == 0
    assert "chain depth         1\n" in run.out
    assert run("image", "clone", "mid", "top", "--label", "a=b") == 0
    assert run.json("image", "show", "mid")["children"] == ["top"]
    assert run("image", "snapshot", "create", "top", "s1") == 0
    assert run("image", "snapshot", "list", "top") == 0
    assert run.out.splitlines()[1].split()[:2] == ["1", "s1"]
    assert run("image", "snapshot", "apply", "top", "s1") == 0
    assert run("image", "snapshot", "delete", "top", "s1") == 0
    assert run("image", "check", "top") == 0
    assert run.out == "No errors were found on the image.\n"
    assert run("image", "convert", "top", "new", "--format", "raw") == 0
    assert run("image", "compare", "top", "new") == 0
    (world.pool() / "new.raw").write_bytes(b"\1" * MIB)
    assert run("image", "compare", "top", "new") == 1
    assert run.out == "Images differ in content at offset 0.\n"
    assert run("image", "commit", "top") == 0
    assert run("image", "rebase", "top", "--flatten") == 0
    assert run.json("image", "show", "top")["parent"] is None
    assert run("image", "rebase", "top") == 64


def test_what_has_nothing_to_check_is_63_and_what_is_corrupt_2(run: Command, world: World) -> None:
    run("image", "create", "r", "1M")
    assert run("image", "check", "r") == 63
    run("image", "create", "q", "1M", "--format", "qcow2")
    _leave_uncounted(world.pool() / "q.qcow2")
    assert run("image", "check", "q") == 2
    assert run("image", "check", "q", "--repair", "all") == 0
    assert run("image", "check", "q") == 0


def _leave_uncounted(path: Path) -> None:
    """The header's cluster has no reference any more."""
    with path.open("r+b") as file:
        file.seek(2 * 65536)
        file.write(b"\0\0")


def test_a_job_is_left_alone_watched_and_cancelled(run: Command, store: Store, gate: Gate) -> None:
    run("image", "create", "a", "1M")
    run("image", "create", "b", "1M")
    job = run.json("image", "compare", "a", "b", "--detach")["id"]
    assert run("job", "wait", str(job)) == 0
    assert run.json("job", "show", str(job))["result"]["identical"] is True  # type: ignore[index]
    held = store.jobs.start(plan(gate))
    assert run("job", "wait", held, "--timeout", "0.2") == 75
    assert run("job", "cancel", held) == 0
    assert run("job", "wait", held) == 1
    assert run("job", "list", "--state", "cancelled") == 0
    assert run.out.splitlines()[1].split()[:4] == [held, "check_image", "a", "cancelled"]


def test_a_job_that_fails_is_the_commands_failure_in_one_line(run: Command, world: World) -> None:
    run("image", "create", "base", "1M")
    run("image", "clone", "base", "top")
    (world.pool() / "base.raw").unlink()
    assert run("image", "convert", "top", "new") == 1
    assert run.err.startswith("vstore: ")
    assert run.err.count("\n") == 1
    assert "base.raw" in run.err
    assert str(world.root) not in run.err


def test_the_service_says_that_it_has_jobs(client: TestClient) -> None:
    assert {"chains", "snapshots", "jobs"} <= set(json.loads(client.get("/").text)["capabilities"])


def test_who_prefers_not_to_wait_gets_a_job_for_resizes_and_snapshots(images: TestClient) -> None:
    later, top = {"Prefer": "respond-async"}, f"{IMAGES}/top"
    asked = [
        lambda: images.patch(top, json={"virtual_size_bytes": 2 * MIB}, headers=later),
        lambda: images.put(f"{top}/snapshots/s", headers=later),
        lambda: images.delete(f"{top}/snapshots/s", headers=later),
    ]
    for ask in asked:
        accepted = ask()
        assert accepted.status_code == 202, accepted.text
        assert accepted.headers["preference-applied"] == "respond-async"
        assert accepted.headers["location"] == f"/v1/jobs/{accepted.json()['id']}"
        assert images.get(f"{accepted.headers['location']}?wait=30").json()["state"] == "succeeded"
    assert images.get(top).json()["virtual_size_bytes"] == 2 * MIB
    assert images.delete(f"{top}/snapshots/s", headers=later).status_code == 204
    assert images.put(f"{top}/snapshots/s").status_code == 201
