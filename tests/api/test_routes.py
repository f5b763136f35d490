"""The resources over HTTP: statuses, tags, pages; what the verbs do is tested with the store."""

import pytest
from fastapi.testclient import TestClient

MIB = 1 << 20
IMAGE, TARGET, LUN = "/v1/pools/default/images/a", "/v1/targets/t", "/v1/targets/t/luns/0"
SPECS = {IMAGE: {"virtual_size_bytes": MIB}, TARGET: {"request_queues": 2}, LUN: {"image": "a"}}


@pytest.fixture
def filled(client: TestClient) -> TestClient:
    """One image, one target, one LUN."""
    for path, spec in SPECS.items():
        assert client.put(path, json=spec).status_code == 201
    return client


@pytest.mark.parametrize("path", SPECS)
def test_putting_the_same_again_is_200_and_another_is_409(filled: TestClient, path: str) -> None:
    first = filled.get(path).json()
    again = filled.put(path, json=SPECS[path])
    assert (again.status_code, again.json()) == (200, first)
    other = {IMAGE: {"virtual_size_bytes": 512}, TARGET: {"request_queues": 3}, LUN: {"image": "a", "read_only": True}}
    refused = filled.put(path, json=other[path])
    assert (refused.status_code, refused.json()["code"]) == (409, "already_exists")


@pytest.mark.parametrize("path", SPECS)
def test_if_none_match_insists_on_creating(filled: TestClient, path: str) -> None:
    refused = filled.put(path, json=SPECS[path], headers={"If-None-Match": "*"})
    assert (refused.status_code, refused.json()["code"]) == (412, "exists")


@pytest.mark.parametrize("path", SPECS)
def test_the_etag_is_the_revision(filled: TestClient, path: str) -> None:
    response = filled.get(path)
    assert response.headers["etag"] == f'"{response.json()["revision"]}"'


@pytest.mark.parametrize("path", [IMAGE, TARGET])
def test_a_patch_on_a_stale_tag_is_412_and_changes_nothing(filled: TestClient, path: str) -> None:
    tag = filled.get(path).headers["etag"]
    changed = filled.patch(path, json={"labels": {"a": "1"}}, headers={"If-Match": tag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != tag
    for stale in (tag, '"x"', 'W/"2"', "2"):
        refused = filled.patch(path, json={"labels": {"a": "2"}}, headers={"If-Match": stale})
        assert (refused.status_code, refused.json()["code"]) == (412, "stale")
    assert filled.get(path).json()["labels"] == {"a": "1"}


@pytest.mark.parametrize("path", [LUN, TARGET, IMAGE])
def test_deleting_twice_is_204_unless_if_match_insists(filled: TestClient, path: str) -> None:
    for each in (LUN, TARGET, IMAGE)[: (LUN, TARGET, IMAGE).index(path) + 1]:
        assert filled.delete(each, headers={"If-Match": '"1"'}).status_code == 204
    if path != LUN:  # a LUN of a target that is gone is another matter
        assert filled.delete(path).status_code == 204
        refused = filled.delete(path, headers={"If-Match": "*"})
        assert (refused.status_code, refused.json()["code"]) == (412, "gone")
    assert filled.get(path).status_code == 404


@pytest.mark.parametrize(("path", "named"), [(IMAGE, "LUN t/0"), (TARGET, "LUN 0")])
def test_what_a_lun_needs_is_not_deleted_and_the_lun_is_named(filled: TestClient, path: str, named: str) -> None:
    refused = filled.delete(path)
    assert (refused.status_code, refused.json()["code"]) == (409, "in_use")
    assert named in refused.json()["detail"]


def test_a_patch_resizes_a_mapped_image(filled: TestClient) -> None:
    assert filled.patch(IMAGE, json={"virtual_size_bytes": 2 * MIB}).json()["virtual_size_bytes"] == 2 * MIB
    assert filled.get(LUN).json()["virtual_size_bytes"] == 2 * MIB


def test_shrinking_is_asked_for_in_the_query(client: TestClient) -> None:
    client.put(IMAGE, json={"virtual_size_bytes": 2 * MIB})
    assert client.patch(IMAGE, json={"virtual_size_bytes": MIB}).status_code == 409
    assert client.patch(f"{IMAGE}?shrink=true", json={"virtual_size_bytes": MIB}).status_code == 200


def test_a_list_leads_from_page_to_page(client: TestClient) -> None:
    for name in "abcde":
        client.put(f"/v1/pools/default/images/{name}", json={"virtual_size_bytes": 512})
    path, names = "/v1/pools/default/images?limit=2", []
    while path:
        response = client.get(path)
        names.append("".join(item["name"] for item in response.json()["items"]))
        path = response.json()["next"]
        assert response.headers.get("link") == (f'<{path}>; rel="next"' if path else None)
    assert names == ["ab", "cd", "e"]


def test_the_service_tells_its_versions_and_formats(client: TestClient) -> None:
    body = client.get("/").json()
    assert body["name"] == "vstore"
    assert body["api_versions"] == ["v1"]
    assert "raw" in body["image_formats"]


def test_attach_lines_are_given_for_the_memory_of_the_guest(filled: TestClient) -> None:
    body = filled.get(f"{TARGET}/attach?memory_bytes={512 * MIB}").json()
    assert body["target"] == "t"
    assert [line["vmm"] for line in body["lines"]] == ["qemu-7.2", "qemu-9.2", "cloud-hypervisor", "crosvm", "libkrun"]
    assert "-m 512M" in body["lines"][0]["command_line"]
    refused = filled.get(f"{TARGET}/attach?memory_bytes=1000")
    assert refused.json()["errors"][0]["parameter"] == "memory_bytes"


def test_every_operation_is_named_and_documented(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["operationId"][0].isupper(), (method, path)
            assert operation["tags"], (method, path)
            assert "HTTPValidationError" not in str(operation), (method, path)
    for schema in ("ImageSpec", "ImageChange", "TargetSpec", "TargetChange", "LunSpec"):
        assert document["components"]["schemas"][schema]["examples"]
