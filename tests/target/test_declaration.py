"""Requests are checked at the edge: each refusal names the field and what would be right."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vstore.target import verbs
from vstore.target.declaration import parse, plain
from vstore.target.errors import ErrorCode, TargetError

IMAGE = {"format": "raw"}
LUN: dict[str, Any] = {"lun": 0, "image": IMAGE, "serial": "S1"}


def refusal(record: type, value: object) -> str:
    with pytest.raises(TargetError) as caught:
        parse(record, value)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    return caught.value.detail


def test_defaults_fill_what_is_left_out() -> None:
    request = parse(verbs.MapLun, LUN)
    assert (request.target, request.logical_block_length, request.thin, request.image.format) == (0, 512, None, "raw")


@pytest.mark.parametrize(
    ("record", "value", "sentence"),
    [
        (verbs.MapLun, 7, "the request: 7 is not an object"),
        (verbs.MapLun, {"lun": 0, "serial": "S"}, "image is missing"),
        (verbs.MapLun, {**LUN, "lnu": 1}, "lnu is no field here; they are target, lun, image, "),
        (verbs.MapLun, {**LUN, "lun": 16384}, "lun: 16384 is not a whole number from 0 to 16383"),
        (verbs.MapLun, {**LUN, "lun": True}, "lun: true is not a whole number"),
        (verbs.MapLun, {**LUN, "lun": 1.0}, "lun: 1.0 is not a whole number"),
        (verbs.MapLun, {**LUN, "lun": None}, "lun: null is not a whole number"),
        (
            verbs.MapLun,
            {**LUN, "image": {"format": "RAW"}},
            'image.format: "RAW" is not text of at most 32 characters, low',
        ),
        (verbs.MapLun, {**LUN, "image": {"format": "raw", "x": 1}}, "image.x is no field here; they are format, "),
        (verbs.MapLun, {**LUN, "image": "raw"}, 'image: "raw" is not an object'),
        (verbs.MapLun, {**LUN, "logical_block_length": 1024}, "logical_block_length: 1024 is not one of 512, 4096"),
        (verbs.MapLun, {**LUN, "read_only": 1}, "read_only: 1 is not true or false"),
        (verbs.MapLun, {**LUN, "serial": "ä"}, "serial: "),
        (
            verbs.MapLun,
            {**LUN, "serial": "x" * 37},
            "is not text of at most 36 characters, at least one, printable ASCII",
        ),
        (verbs.MapLun, {**LUN, "serial": ""}, 'serial: "" is not text of at most 36 characters, at least one'),
        (verbs.MapLun, {**LUN, "uuid": "3"}, 'uuid: "3" is not text of at most 36 characters, a UUID'),
        (verbs.Status, {}, "protocol is missing"),
        (verbs.ResizeLun, {"lun": 0, "length": 0}, "length: 0 is not a whole number from 512 to "),
    ],
)
def test_unfit_field_is_named_with_what_would_be_right(record: type, value: object, sentence: str) -> None:
    assert sentence in refusal(record, value)


def test_row_of_a_list_is_named_by_its_place() -> None:
    lun = {"settings": LUN, "length": 1, "read_only": False, "thin": True, "in_flight": -1}
    status = {
        "protocol": 1,
        "version": "1",
        "pid": 1,
        "state": "new",
        "configuration": None,
        "vrings": [],
        "luns": [lun],
        "next_lun": None,
    }
    assert "luns[0].in_flight: -1 is not a whole number" in refusal(verbs.Status, status)


def test_long_values_are_cut_in_the_refusal() -> None:
    assert len(refusal(verbs.MapLun, {**LUN, "serial": "x" * 60000})) < 200
    assert len(refusal(verbs.MapLun, {**LUN, "x" * 60000: 1})) < 400


def test_record_survives_the_way_to_json_and_back() -> None:
    request = parse(verbs.MapLun, LUN)
    assert parse(verbs.MapLun, plain(request)) == request


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["lun", "image", "serial", "format"]), inner),
        max_leaves=8,
    )
)
def test_any_json_value_is_read_or_refused(value: object) -> None:
    for verb in verbs.VERBS.values():
        with contextlib.suppress(TargetError):
            assert isinstance(parse(verb.request, value), verb.request)
