"""Random verbs against a model: catalog, files and processes always tell what the model tells, across restarts too."""

from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.store.test_luns import served
from tests.store.world import World, eventually
from vstore.store import Store
from vstore.store.errors import AlreadyExists, Conflict, InvalidArgument, NotFound

images = st.sampled_from(["a", "b", "c"])
sizes = st.sampled_from([512, 1024, 4096, 8192])
targets = st.sampled_from(["t", "u"])
addresses = st.sampled_from(["0", "1", "1:0"])


class StoreModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.store: Store = self.world.open()
        self.images: dict[str, int] = {}
        self.luns: dict[tuple[str, str], tuple[str, bool]] = {}  # (target, address): (image, read-only)

    @initialize()
    def create_targets(self) -> None:
        for target in ("t", "u"):
            self.store.create_target(target)

    @rule(name=images, size=sizes)
    def create_image(self, name: str, size: int) -> None:
        known = self.images.get(name)
        try:
            _, new = self.store.create_image("default", name, virtual_size_bytes=size)
        except AlreadyExists:
            assert known not in (None, size)
            return
        assert new == (known is None)
        assert known in (None, size)
        self.images[name] = size

    @rule(name=images, size=sizes)
    def resize_image(self, name: str, size: int) -> None:
        known, mapped = self.images.get(name), self._mappings(name)
        possible = known is not None and (
            size == known or not mapped or (size > known and not any(read_only for _, read_only in mapped))
        )
        try:
            self.store.update_image("default", name, virtual_size_bytes=size, shrink=True)
        except (NotFound, Conflict):
            assert not possible
            return
        assert possible
        self.images[name] = size

    @rule(name=images)
    def delete_image(self, name: str) -> None:
        try:
            deleted = self.store.delete_image("default", name)
        except Conflict:
            assert self._mappings(name)
            return
        assert not self._mappings(name)
        assert deleted == (self.images.pop(name, None) is not None)

    @rule(host=targets, address=addresses, image=images, read_only=st.booleans())
    def map_lun(self, host: str, address: str, image: str, read_only: bool) -> None:
        known = self.luns.get((host, address))
        others = self._mappings(image) if known is None else []
        shared = all(read_only and theirs for _, theirs in others)
        possible = image in self.images and known in (None, (image, read_only)) and shared
        try:
            _, new = self.store.map_lun(host, address, image=image, read_only=read_only)
        except (NotFound, Conflict, AlreadyExists, InvalidArgument):
            assert not possible
            return
        assert possible
        assert new == (known is None)
        self.luns[host, address] = (image, read_only)

    @rule(host=targets, address=addresses)
    def unmap_lun(self, host: str, address: str) -> None:
        assert self.store.unmap_lun(host, address) == (self.luns.pop((host, address), None) is not None)

    @rule(stop_targets=st.booleans())
    def restart(self, stop_targets: bool) -> None:
        self.world.close_store(self.store, stop_targets=stop_targets)
        self.store = self.world.open()
        for target in ("t", "u"):
            eventually(lambda target=target: self.store.show_target(target).process.state == "listening")  # type: ignore[misc]

    @invariant()
    def all_tell_the_same(self) -> None:
        told = {image.name: image.virtual_size_bytes for image in self.store.list_images("default").items}
        assert told == self.images
        assert self.world.files() == sorted(f"{name}.raw" for name in self.images)
        assert self.world.states() <= {f"{name}.raw" for name, read_only in self.luns.values() if not read_only}
        for name, size in self.images.items():
            assert (self.world.pool() / f"{name}.raw").stat().st_size == size
        for target in self.store.list_targets().items:
            assert {lun.name for lun in self.store.list_luns(target.name).items} == self._names(target.name)
            process = {f"{t}:{n}" if t else str(n): image for t, n, image in served(self.world, target.name)}
            assert process == {name: f"default/{self.luns[target.name, name][0]}" for name in self._names(target.name)}

    def teardown(self) -> None:
        self.world.close()

    def _mappings(self, image: str) -> list[tuple[str, bool]]:
        return [mapping for mapping in self.luns.values() if mapping[0] == image]

    def _names(self, target: str) -> set[str]:
        return {address for at, address in self.luns if at == target}


TestStoreModel: Any = StoreModel.TestCase
TestStoreModel.settings = settings(max_examples=6, stateful_step_count=25, deadline=None)
