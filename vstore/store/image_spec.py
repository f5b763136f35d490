"""What a new image shall be: format, preallocation and the format's options, checked, and read back from what was made.

Options are those of the format's row in the registry, under the names that REST gives them: the parent is not one of
them, because the catalog alone says which image is whose. A data file is a plain name in the pool, made and
deleted with the image; the catalog knows it from `data_file` of the options that it keeps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from formats import options as declared
from formats.errors import InvalidArgument as Misfit
from formats.host_file import HostFile, Opener
from formats.options import Option
from formats.registry import FORMATS, open_image
from vstore.store.errors import InvalidArgument
from vstore.store.identifiers import NAME, check_name

_PREALLOCATIONS = {"qcow2": ("off", "metadata", "falloc", "full"), "luks": ("off",)}
_OTHERS = ("off", "falloc", "full")
_FILES = {"backing_file", "backing_fmt"}
_SECRET = "encrypt.format"  # follows from the secret that is named
_UNOFFERED = _FILES | {_SECRET}
DATA_SUFFIX = ".data"  # of data files, which no image's own file has
_RENAMED = {"cluster_size": "cluster_size_bytes"}  # sizes in REST say what they count
_KINDS = (bool, int, str)


@dataclass(frozen=True)
class ImageSpec:
    """Checked. `options` are those that were given, by their REST names; `secret` is the name of what shall open it."""

    format: str
    preallocation: str
    options: dict[str, Any]
    secret: str | None = None

    @classmethod
    def checked(
        cls,
        format: str,
        preallocation: str,
        options: Mapping[str, Any] | None,
        *,
        overlay: bool = False,
        secret: str | None = None,
    ) -> "ImageSpec":
        """Raises InvalidArgument."""
        if format not in FORMATS:
            raise InvalidArgument("format", f"{format[:80]!r} is not an image format", f"choose {', '.join(FORMATS)}")
        _check_secret(format, secret)
        if overlay and not takes_parent(format):
            fitting = ", ".join(name for name in FORMATS if takes_parent(name))
            raise InvalidArgument("format", f"{format} images have no parent", f"choose {fitting}")
        offered = _PREALLOCATIONS.get(format, _OTHERS) if secret is None else ("off",)
        if preallocation not in offered:
            wrong = f"{preallocation[:80]!r} is not offered for {'encrypted ' if secret else ''}{format} images"
            raise InvalidArgument("preallocation", wrong, f"choose {', '.join(offered)}")
        spec = cls(format, preallocation, dict(options or {}), secret)
        spec._check_options()
        return spec

    def _check_options(self) -> None:
        known = offered(self.format)
        for name, value in self.options.items():
            if name not in known:
                right = f"choose {', '.join(known)}" if known else "leave options out"
                raise InvalidArgument(f"options/{name[:80]}", f"{self.format} images have no such option", right)
            if not isinstance(value, _KINDS):
                raise InvalidArgument(f"options/{name}", "its value is of the wrong kind", known[name].help)
        self._check_data_file()
        try:
            declared.parsed(self.format, FORMATS[self.format].options, self.for_format())
        except Misfit as error:
            raise InvalidArgument("options", str(error), "correct the option that is named") from error

    def _check_data_file(self) -> None:
        name = self.data_file
        if name is None:
            return
        if not NAME.fullmatch(name) or not name.endswith(DATA_SUFFIX):
            right = f"give a plain name that ends in {DATA_SUFFIX}, such as web{DATA_SUFFIX}"
            raise InvalidArgument("options/data_file", f"{name[:80]!r} cannot be a data file's name", right)
        if self.secret is not None:
            raise InvalidArgument("options/data_file", "a data file is not encrypted", "leave it or the secret out")

    @property
    def data_file(self) -> str | None:
        """What the image shall keep its bytes in, if not in its own file."""
        return self.options.get("data_file")

    def for_format(self) -> dict[str, Any]:
        """The options as the registry names them."""
        encrypting = {} if self.secret is None or self.format == "luks" else {_SECRET: "luks"}
        return {_own(name): value for name, value in self.options.items()} | encrypting

    def differences(self, present: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Of the options that were given, those that `present` has otherwise: what it has, and what was asked for."""
        known = offered(self.format)
        return {
            name: (present.get(name), value)
            for name, value in self.options.items()
            if name not in present or known[name].parse(value) != known[name].parse(present[name])
        }


def _check_secret(format: str, secret: str | None) -> None:
    """Raises InvalidArgument."""
    if secret is not None:
        check_name("secret", secret)
        if not takes_secret(format):
            fitting = ", ".join(name for name in FORMATS if takes_secret(name))
            raise InvalidArgument("secret", f"{format} images are not encrypted", f"choose {fitting}")
    elif format == "luks":
        raise InvalidArgument("secret", "luks images need one", "name it (--encrypt SECRET), or choose another format")


def takes_secret(format: str) -> bool:
    return format == "luks" or any(row.name == _SECRET for row in FORMATS[format].options)


def data_file_of(row: Any) -> str | None:
    """The file in which an image keeps its bytes, if not in its own; of a row of the catalog, which made it."""
    name: str | None = row.options.get("data_file")
    return name


def files_of(row: Any) -> list[str]:
    """The image's file first; none of a format that has no file."""
    return [name for name in (row.file, data_file_of(row)) if name is not None]


def file_name(name: str, format: str) -> str | None:
    """Formats hold no dot, so two images cannot come to the same file name. None: it has no file."""
    return f"{name}.{format}" if FORMATS[format].open else None


def offered(format: str) -> dict[str, Option]:
    """The options of a format by their REST names."""
    return {_RENAMED.get(row.name, row.name): row for row in FORMATS[format].options if row.name not in _UNOFFERED}


def takes_parent(format: str) -> bool:
    return any(row.name == "backing_file" for row in FORMATS[format].options)


def effective(format: str, file: HostFile, opener: Opener | None) -> dict[str, Any]:
    """The options that a new image has come to have, whoever chose them. Raises ImageError."""
    with open_image(format, file, opener=opener) as image:
        return options_told(format, image.info())


def options_told(format: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """The same out of what `info` tells."""
    specific: Any = told.get("format-specific") or {}
    values = {**told, **specific.get("data", {})}
    found = {name: values.get(_own(name).replace("_", "-")) for name in offered(format)}
    return {name: value for name, value in found.items() if value is not None}


def _own(name: str) -> str:
    return next((own for own, rest in _RENAMED.items() if rest == name), name)
