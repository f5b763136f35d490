"""Whatever a client sends, the answer is a problem and never a fault of ours."""

import json

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PATHS = ("/v1/pools/default/images/a", "/v1/targets/t", "/v1/targets/t/luns/0")
WORK = tuple(f"{PATHS[0]}/{verb}" for verb in ("clone", "check", "rebase", "commit", "convert", "compare", "bench"))
FIELDS = (
    "virtual_size_bytes",
    "format",
    "preallocation",
    "options",
    "parent",
    "name",
    "labels",
    "request_queues",
    "threads",
    "poll_us",
    "config_space",
    "socket_mode",
    "socket_owner",
    "socket_group",
    "image",
    "pool",
    "read_only",
    "direct",
    "logical_block_length_bytes",
    "serial",
    *("repair", "unsafe", "into", "compress", "snapshot", "other", "strict", "requests", "depth", "request_bytes"),
)

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
bodies = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), anything, max_size=5) | anything


def _is_a_refusal(status: int, content: bytes) -> bool:
    return 400 <= status < 500 and json.loads(content)["status"] == status


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(PATHS), method=st.sampled_from(["PUT", "PATCH"]), body=bodies)
def test_no_body_is_a_fault_of_ours(reader: TestClient, path: str, method: str, body: object) -> None:
    """Bodies that would create something are left out: an image needs a size of whole sectors, a target needs none."""
    if method == "PUT" and ((path == PATHS[0] and _has_size(body)) or path == PATHS[1]):
        return
    response = reader.request(method, path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert _is_a_refusal(response.status_code, response.content), response.text


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(WORK), body=bodies)
def test_no_body_of_long_work_is_a_fault_of_ours(reader: TestClient, path: str, body: object) -> None:
    """There is no image, so that nothing begins."""
    response = reader.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert _is_a_refusal(response.status_code, response.content), response.text


def _has_size(body: object) -> bool:
    return isinstance(body, dict) and isinstance(body.get("virtual_size_bytes"), int)


@pytest.mark.parametrize(
    "content",
    [
        b'{"virtual_size_bytes": ' + b"9" * 5000 + b"}",
        b'{"virtual_size_bytes": 512, "labels": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"virtual_size_bytes": 512, "format": "\\ud800"}',
        b'{"virtual_size_bytes": 512, "labels": {"\\ud800": "x"}}',
        b'{"virtual_size_bytes": 512, "labels": {"x": "\\udfff"}}',
        b'{"virtual_size_bytes": 512, "\\ud800": "x"}',
        b'{"virtual_size_bytes": 512, "virtual_size_bytes": "x"}',
        b'{"virtual_size_bytes": NaN}',
        b'{"virtual_size_bytes": 1e400}',
        b"\xff\xfe\x00",
        b"",
    ],
    ids=range(11),
)
def test_no_json_is_a_fault_of_ours(reader: TestClient, content: bytes) -> None:
    response = reader.put(PATHS[0], content=content, headers={"content-type": "application/json"})
    assert _is_a_refusal(response.status_code, response.content), response.text


@pytest.mark.parametrize(
    "query",
    ["limit=" + "9" * 5000, "cursor=%ff%fe", "cursor=AAAA", "limit=1&limit=x", "cursor=" + "A" * 60000, "limit=%00"],
)
def test_no_query_is_a_fault_of_ours(reader: TestClient, query: str) -> None:
    response = reader.get(f"/v1/pools/default/images?{query}")
    assert response.status_code == 200 or _is_a_refusal(response.status_code, response.content), response.text


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match", "Host", "Origin", "Content-Type", "Accept"])
@pytest.mark.parametrize("value", ["\xff\xfe", '"' + "9" * 400 + '"', "*, *", "//", "[", "http://[::1"])
def test_no_header_is_a_fault_of_ours(reader: TestClient, header: str, value: str) -> None:
    response = reader.patch(
        PATHS[0],
        content=b'{"labels": {}}',
        headers={b"content-type": b"application/json", header.encode(): value.encode("latin-1")},
    )
    assert _is_a_refusal(response.status_code, response.content), response.text
