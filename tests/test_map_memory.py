"""A map that may take little memory forgets and loads again, under readers and writers, without losing a byte."""

import random
import threading
from collections.abc import Callable
from pathlib import Path

from formats.image import BlockState
from formats.registry import open_chain
from tests.formats.qcow2.oracle import assert_clean, qemu_create
from vstore.disk import Disk

CLUSTER = 512
PAGE = 512 * CLUSTER  # bytes of the disk that a page of the map tells of
PAGES = 600
LEAST = 1 << 20  # room for some 250 pages


def in_threads(work: Callable[[int], None], count: int) -> None:
    failures: list[BaseException] = []

    def caught(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=caught, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def test_all_is_read_and_written_while_pages_of_the_map_come_and_go(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, PAGES * PAGE, cluster_size=CLUSTER)
    disk = Disk(*open_chain("qcow2", path))
    disk.volume.set_map_limit(LEAST)
    written = [bytes([page % 251]) * 700 for page in range(PAGES)]
    for page, data in enumerate(written):
        disk.write_blocking(page * PAGE + 5000, data)
    disk.flush_blocking()

    def use(number: int) -> None:
        draw = random.Random(number)
        for _ in range(800):
            page = draw.randrange(number, PAGES, 3)
            assert disk.read_blocking(page * PAGE + 5000, 700) == written[page]
            if draw.random() < 0.3:
                written[page] = bytes([draw.randrange(256)]) * 700
                disk.write_blocking(page * PAGE + 5000, written[page])
            if draw.random() < 0.01:
                disk.flush_blocking()

    in_threads(use, 3)
    assert any(disk.volume.get_entry(page * 512) >> 60 == BlockState.NOT_LOADED for page in range(PAGES))
    disk.close()
    assert_clean(path)
    disk = Disk(*open_chain("qcow2", path, read_only=True))
    assert [disk.read_blocking(page * PAGE + 5000, 700) for page in range(PAGES)] == written
    disk.close()
