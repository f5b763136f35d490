"""One Store method is one REST operation is one command: the three sets are the same."""

import re
from collections.abc import Iterator

import click
from fastapi.testclient import TestClient

from api.cli import vstore
from vstore.store import store

WITHOUT_DAEMON = {"serve", "export", "file", "fuzz", "doctor"}  # they do not talk to it
SHORTHANDS = {  # under the names that people look for
    "image resize": "update_image",  # one half of an update
    "secret rm": "delete_secret",
    "job wait": "show_job",  # again and again, until it has ended
}
NOT_A_VERB = {"ServiceShow"}
ATTACH = "attach_line"  # of one target there are several lines; REST and command call it by what one does with them
PLURALS = ("images", "snapshots", "bitmaps", "secrets", "jobs", "targets", "luns", "lines")


def _singular(verb: str) -> str:
    """`list_images` is told of the noun `image`, as all its kin."""
    name, _, noun = verb.partition("_")
    return f"{name}_{noun.removesuffix('s') if noun in PLURALS else noun}"


def store_verbs() -> set[str]:
    return {_singular(verb) for verb in store.VERBS}


def operations(client: TestClient) -> set[str]:
    document = client.get("/openapi.json").json()
    ids = {operation["operationId"] for path in document["paths"].values() for operation in path.values()}
    return {_of_operation(each) for each in ids - NOT_A_VERB}


def _of_operation(operation_id: str) -> str:
    if operation_id == "TargetAttach":
        return ATTACH
    match = re.fullmatch(r"([A-Z][a-z]+)([A-Z][a-z]+)", operation_id)  # NounVerb
    assert match, operation_id
    return _singular(f"{match[2].lower()}_{match[1].lower()}")


def commands() -> set[str]:
    return {_of_command(each) for each in _paths(vstore, "") if each.split()[0] not in WITHOUT_DAEMON}


def _paths(group: click.Group, at: str) -> Iterator[str]:
    """The whole words of each command in the group and those below it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from _paths(command, f"{at}{name} ")
        else:
            yield at + name


def _of_command(path: str) -> str:
    if path in SHORTHANDS:
        return SHORTHANDS[path]
    *nouns, verb = path.split()
    return f"{verb}_{nouns[-1]}" if nouns else f"{verb}_line"


def test_every_store_verb_is_a_rest_operation_and_the_other_way_round(client: TestClient) -> None:
    assert operations(client) == store_verbs()


def test_every_store_verb_is_a_command_and_the_other_way_round() -> None:
    assert commands() == store_verbs()
