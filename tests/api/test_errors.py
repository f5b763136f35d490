"""Every failure is a problem of RFC 9457, told by one table."""

import threading
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from api.errors import MEDIA_TYPE, PROBLEMS
from tests.store.world import eventually
from vstore.store import Store, errors
from vstore.store.errors import StoreError
from vstore.store.parts import MOST_WAITING

IMAGES = "/v1/pools/default/images"


def _kinds(base: type[StoreError]) -> Iterator[type[StoreError]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds(kind)


@pytest.mark.parametrize("kind", list(_kinds(StoreError)), ids=lambda kind: kind.__name__)
def test_every_store_error_has_a_row_of_its_own(kind: type[StoreError]) -> None:
    assert PROBLEMS[kind.code].code == kind.code
    assert kind.code != errors.StoreError.code


@pytest.mark.parametrize("code", PROBLEMS)
def test_the_type_of_a_problem_is_a_page_that_explains_it(reader: TestClient, code: str) -> None:
    page = reader.get(f"/problems/{code}")
    assert page.status_code == 200
    assert PROBLEMS[code].title in page.text
    assert PROBLEMS[code].help in page.text


def test_a_problem_has_all_its_members(reader: TestClient) -> None:
    response = reader.get(f"{IMAGES}/nothing")
    assert response.status_code == 404
    assert response.headers["content-type"] == MEDIA_TYPE
    assert response.json() == {
        "type": "/problems/not_found",
        "title": "There is no such object",
        "status": 404,
        "detail": "there is no image 'nothing' in pool default",
        "instance": f"{IMAGES}/nothing",
        "code": "not_found",
        "errors": [{"detail": "there is no image 'nothing' in pool default", "parameter": "image"}],
    }


def test_a_wrong_value_points_into_the_body(reader: TestClient) -> None:
    problem = reader.put(f"{IMAGES}/a", json={"virtual_size_bytes": 1000}).json()
    assert problem["code"] == "invalid_argument"
    assert problem["errors"][0]["pointer"] == "#/virtual_size_bytes"
    assert "nearest: 512 or 1024" in problem["detail"]


def test_a_wrong_label_is_pointed_at_by_its_key(reader: TestClient) -> None:
    problem = reader.put(f"{IMAGES}/a", json={"virtual_size_bytes": 512, "labels": {"k": "\n"}}).json()
    assert problem["errors"][0]["pointer"] == "#/labels/k"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"virtual_size_bytes": "1G"}, "#/virtual_size_bytes"),
        ({"virtual_size_bytes": 1.5}, "#/virtual_size_bytes"),
        ({"virtual_size_bytes": True}, "#/virtual_size_bytes"),
        ({"virtual_size_bytes": 512, "size": 1}, "#/size"),
        ({"virtual_size_bytes": 512, "labels": {"k": 1}}, "#/labels/k"),
        ([], "#"),
    ],
)
def test_a_wrong_shape_points_into_the_body(reader: TestClient, body: object, pointer: str) -> None:
    response = reader.put(f"{IMAGES}/a", json=body)
    assert response.status_code == 422
    assert response.headers["content-type"] == MEDIA_TYPE
    assert response.json()["code"] == "invalid_request"
    assert [error["pointer"] for error in response.json()["errors"]] == [pointer]


def test_a_size_that_is_missing_is_pointed_at(reader: TestClient) -> None:
    problem = reader.put(f"{IMAGES}/a", json={}).json()
    assert (problem["code"], problem["errors"][0]["pointer"]) == ("invalid_argument", "#/virtual_size_bytes")


def test_null_for_a_size_is_refused_because_it_cannot_be_taken_away(reader: TestClient) -> None:
    problem = reader.patch(f"{IMAGES}/a", json={"virtual_size_bytes": None}).json()
    assert problem["errors"][0]["pointer"] == "#/virtual_size_bytes"


def test_a_wrong_query_parameter_is_named(reader: TestClient) -> None:
    problem = reader.get(f"{IMAGES}?limit=x").json()
    assert problem["errors"][0]["parameter"] == "limit"
    problem = reader.get(f"{IMAGES}?limit=0").json()
    assert (problem["code"], problem["errors"][0]["parameter"]) == ("invalid_argument", "limit")


def test_a_body_that_is_no_json_is_told_so(reader: TestClient) -> None:
    response = reader.put(f"{IMAGES}/a", content=b'{"virtual', headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["code"]) == (400, "malformed_json")


def test_a_body_that_does_not_say_it_is_json_is_not_read_as_json(reader: TestClient) -> None:
    """A web page may send text/plain across origins without asking first."""
    response = reader.put(f"{IMAGES}/a", content=b'{"virtual_size_bytes": 512}', headers={"content-type": "text/plain"})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert reader.get(f"{IMAGES}/a").status_code == 404


def test_a_body_too_large_is_refused(reader: TestClient) -> None:
    response = reader.put(f"{IMAGES}/a", json={"virtual_size_bytes": 512, "format": "x" * (2 << 20)})
    assert (response.status_code, response.json()["code"]) == (413, "too_large")


def test_an_unknown_path_and_an_unknown_method_are_problems_too(reader: TestClient) -> None:
    response = reader.get("/v1/volumes")
    assert (response.status_code, response.json()["code"]) == (404, "no_such_resource")
    response = reader.post(f"{IMAGES}/a")
    assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
    assert "PUT" in response.headers["allow"]


def test_a_fault_of_ours_tells_nothing_of_itself(
    client: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object, **__: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(store, "list_targets", fault)
    response = client.get("/v1/targets")
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert "secret" not in response.text


@pytest.mark.parametrize("name", ["..%2f..%2fetc%2fpasswd", "%00", ".", "a%0ab", "x" * 300, "%F0%9F%92%A3"])
def test_a_hostile_name_is_refused_and_makes_no_file(reader: TestClient, name: str) -> None:
    response = reader.put(f"{IMAGES}/{name}", json={"virtual_size_bytes": 512})
    assert response.status_code in (404, 405, 422)
    assert response.headers["content-type"] == MEDIA_TYPE
    assert reader.get(IMAGES).json()["items"] == []


def test_requests_for_a_target_that_hangs_do_not_keep_others_from_an_answer(client: TestClient, store: Store) -> None:
    client.put("/v1/targets/hung", json={})
    answers: list[int] = []

    def change(number: int) -> None:
        answers.append(client.patch("/v1/targets/hung", json={"labels": {"n": str(number)}}).status_code)

    threads = [threading.Thread(target=change, args=(number,)) for number in range(60)]
    with store.holding(target="hung"):
        for thread in threads:
            thread.start()
        eventually(lambda: len(answers) == len(threads) - MOST_WAITING)
        refused = client.delete("/v1/targets/hung")
        assert (refused.status_code, refused.json()["code"]) == (503, "busy")
        assert refused.headers["retry-after"] == "1"
        assert client.get("/v1/targets/hung").status_code == 200
        assert client.put("/v1/targets/well", json={}).status_code == 201
    for thread in threads:
        thread.join(20)
    assert sorted(answers) == [200] * MOST_WAITING + [503] * (len(threads) - MOST_WAITING)
