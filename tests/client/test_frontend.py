"""Frontend: what it says when the back-end refuses, lies, hangs or hangs up. (Understood: test_transport.)"""

import struct
from pathlib import Path

import pytest

from tests.client.fake_backend import FEATURES, HANG_UP, ONLY_ACK, SILENT, Raw, fake_backend
from vstore.client.errors import BackendFault, BackendGone, BackendRefused, BackendTimeout, ClientError
from vstore.client.frontend import Feature, Frontend, Request
from vstore.client.memory import MIB, GuestMemory
from vstore.client.transport import Transport, TransportSettings

_SMALL = TransportSettings(region_sizes=(MIB,), queue_size=8, message_timeout=0.2)


def _connect(path: Path) -> None:
    Transport(path, 3, _SMALL, wanted=0).close()


def test_the_handshake_follows_the_order_of_a_vmm(tmp_path: Path) -> None:
    with fake_backend(tmp_path) as backend:
        _connect(backend.path)
    names = [Request(request).name for request, _ in backend.heard]
    assert names[:6] == [
        "GET_FEATURES",
        "GET_PROTOCOL_FEATURES",
        "SET_PROTOCOL_FEATURES",
        "SET_OWNER",
        "SET_FEATURES",
        "GET_QUEUE_NUM",
    ]
    ring = ["SET_VRING_NUM", "SET_VRING_BASE", "SET_VRING_ADDR", "SET_VRING_KICK"]
    assert names[6:] == [
        *["SET_VRING_CALL", "SET_VRING_ERR"] * 3,
        "GET_MAX_MEM_SLOTS",
        "ADD_MEM_REG",
        *ring * 3,
        *["SET_VRING_ENABLE"] * 6,
        *["GET_VRING_BASE"],  # the second one is answered for the wrong ring, which ends the orderly stop
        *["GET_VRING_BASE"],
    ]


def test_features_that_nobody_offered_are_not_acknowledged(tmp_path: Path) -> None:
    offered = FEATURES & ~Feature.RING_EVENT_IDX
    with fake_backend(tmp_path, GET_FEATURES=struct.pack("<Q", offered | 1 << 40)) as backend:
        _connect(backend.path)
    acknowledged = [payload for request, payload in backend.heard if request == Request.SET_FEATURES]
    assert acknowledged == [struct.pack("<Q", offered)]


@pytest.mark.parametrize(
    ("request_name", "answer", "error", "sentence"),
    [
        ("GET_FEATURES", SILENT, BackendTimeout, r"did not answer GET_FEATURES within 0\.2 s"),
        ("GET_FEATURES", HANG_UP, BackendGone, "closed the connection while GET_FEATURES"),
        ("GET_FEATURES", b"1234", BackendFault, "GET_FEATURES was answered with 4 bytes instead of 8"),
        ("GET_FEATURES", struct.pack("<Q", 1 << 30), BackendRefused, "lacks the needed 0x100000000"),
        ("GET_FEATURES", Raw(struct.pack("<IIIQ", 2, 5, 8, 0)), BackendFault, "answered by request 2"),
        ("GET_FEATURES", Raw(struct.pack("<IIIQ", 1, 1, 8, 0)), BackendFault, "flags 0x1"),
        ("GET_FEATURES", Raw(struct.pack("<IIIQ", 1, 6, 8, 0)), BackendFault, "flags 0x6"),
        ("GET_FEATURES", Raw(struct.pack("<III", 1, 5, 1 << 30)), BackendFault, "1073741824 bytes"),
        ("GET_QUEUE_NUM", struct.pack("<Q", 2), BackendRefused, "serves 2 virtqueues and 3 are needed"),
        ("ADD_MEM_REG", struct.pack("<Q", 1), BackendRefused, "refused ADD_MEM_REG with 0x1"),
        ("SET_VRING_KICK", HANG_UP, BackendGone, "while SET_VRING_KICK was awaited"),
        ("SET_VRING_ENABLE", SILENT, BackendTimeout, "did not answer SET_VRING_ENABLE"),
        ("GET_MAX_MEM_SLOTS", struct.pack("<Q", 0), BackendRefused, "takes 0 memory regions and guest memory has 1"),
    ],
)
def test_a_bad_answer_is_an_error_that_names_the_message(
    tmp_path: Path, request_name: str, answer: object, error: type[ClientError], sentence: str
) -> None:
    with fake_backend(tmp_path, **{request_name: answer}) as backend, pytest.raises(error, match=sentence):
        _connect(backend.path)


def test_closing_does_not_wait_for_a_back_end_that_hangs_more_than_once(tmp_path: Path) -> None:
    with fake_backend(tmp_path, GET_VRING_BASE=SILENT) as backend:
        _connect(backend.path)
    assert [request for request, _ in backend.heard].count(Request.GET_VRING_BASE) == 1


def test_without_memory_slots_nine_regions_are_too_many(tmp_path: Path) -> None:
    with fake_backend(tmp_path, GET_PROTOCOL_FEATURES=ONLY_ACK) as backend, GuestMemory([4096] * 9) as memory:
        frontend = Frontend(backend.path, 1)
        frontend.negotiate(0, Feature.PROTOCOL_FEATURES)
        with frontend, pytest.raises(BackendRefused, match="takes 8 memory regions and guest memory has 9"):
            frontend.set_memory(memory.regions)


def test_a_message_nobody_asked_for_is_a_fault_of_the_back_end(tmp_path: Path) -> None:
    unasked = Raw(struct.pack("<IIIQ", 1, 5, 8, FEATURES) * 2)
    with fake_backend(tmp_path, GET_FEATURES=unasked) as backend, Frontend(backend.path, 1) as frontend:
        frontend.ask(Request.GET_FEATURES)
        with pytest.raises(BackendFault, match="nobody had asked for"):
            frontend.check_alive()
