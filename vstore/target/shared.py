"""LUNs that several targets of one process have in common: one logical unit, one disk, and a nexus for each machine."""

import asyncio
from dataclasses import replace

from vstore.target.errors import ErrorCode, TargetError
from vstore.target.lun import MappedLun
from vstore.target.verbs import MapLun


class SharedLuns:
    """By the name of the image, which is the word of whoever maps it. Hold `changing` around look and change."""

    def __init__(self) -> None:
        self.changing = asyncio.Lock()
        self._found: dict[str, MappedLun] = {}

    def place(self, settings: MapLun) -> MappedLun | None:
        """One more place of a LUN that is mapped already; None where it is not. Raises TargetError: it is otherwise."""
        found = self._found.get(settings.image.name)
        if found is None:
            return None
        if replace(found.settings, target=settings.target, lun=settings.lun) != settings:
            detail = f"{settings.image.name} is shared with other settings; map it with those"
            raise TargetError(ErrorCode.LUN_EXISTS, detail)
        return found.beside(settings)

    def add(self, mapped: MappedLun) -> None:
        self._found[mapped.settings.image.name] = mapped

    def remove(self, mapped: MappedLun) -> None:
        """Of several places another one stands for all."""
        name = mapped.settings.image.name
        others = [place for place in mapped.places if place is not mapped]
        if others:
            self._found[name] = others[0]
        else:
            self._found.pop(name, None)
