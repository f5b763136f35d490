"""Restructuring: what is done to images that nobody has open, by the verbs that people call; the disk reads the same.

A clone and a converted image take the place of the disk's own: the chain grows, or becomes one image.
"""

import random

from tests.copy_on_write import recipe as recipes
from tests.copy_on_write.layer import Layer
from tests.copy_on_write.operations import Operation
from tests.copy_on_write.recipe import DEEPEST
from tests.copy_on_write.world import LONG, World
from vstore.transfer import offline


def bitmap(world: World, operation: Operation) -> None:
    """A verb on the persistent bitmaps, ours or qemu-img's; those of long disks would have too many granules."""
    if world.is_qcow2 and world.top.version == 3 and world.recipe.top.length <= LONG:
        with world.closed():
            source = random.Random(operation.stamp)
            world.bitmaps.change(source, world.chain, world.folder, world.model.length)


def commit(world: World, _: Operation) -> None:
    """Into the parent; what snapshots see through the holes they have would change with it."""
    if len(world.chain) > 1 and not world.snapshots:
        parent = world.chain[-2]
        if (parent.version == 2 or parent.format == "luks") and parent.length < world.model.length:
            return  # it may be unable to grow
        with world.closed():
            offline.commit_file(world.place)
            world.bitmaps.perhaps_touched(0, world.model.length)


def rebase(world: World, operation: Operation) -> None:
    """Over no parent, or back over the one that it was made for."""
    if world.is_qcow2 and not world.snapshots and "data_file_raw" not in world.top.options:
        below = world.under if operation.stamp % 3 else ()
        name, format = (below[-1].name, below[-1].format) if below else ("", None)
        with world.closed():
            offline.rebase_file(world.place, name, format)
            world.bitmaps.perhaps_touched(0, world.model.length)
            world.chain = (*below, world.top)


def clone(world: World, operation: Operation) -> None:
    """A new overlay, which the disk goes on in."""
    if len(world.chain) < DEEPEST:
        options = recipes.options_over(random.Random(operation.stamp), world.model.length, world.top)
        name = f"clone{operation.stamp}.qcow2"
        new = Layer(name, "qcow2", world.model.length, options, ours=True)
        with world.closed():
            if "encrypt.format" in options:  # the verb itself has no word for a secret yet
                recipes.create(new, world.top, world.folder)
            else:
                offline.clone(world.place, offline.Place(str(world.folder / name), "qcow2"), options)
            world.goes_on_in(new, world.chain)


def convert(world: World, operation: Operation) -> None:
    """The whole chain becomes one image, which the disk goes on in."""
    source = random.Random(operation.stamp)
    name, options = f"converted{operation.stamp}.qcow2", recipes.options_over(source, world.model.length, None)
    options.pop("encrypt.format", None)
    new = Layer(name, "qcow2", world.model.length, options, ours=True)
    how = {"preallocation": "off", "compress": source.random() < 0.5, "sparse": source.choice([0, 512, 4096])}
    with world.closed():
        offline.convert_file(world.place, offline.Place(str(world.folder / name), "qcow2"), options, how)
        world.goes_on_in(new, ())
