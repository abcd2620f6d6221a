"""A Python package as a place of origin: data that somebody published as one, found where it is installed.

None of its code is run: it is looked for, not imported, and its files are read as files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from interfuse.errors import DataError


@dataclass(frozen=True)
class Package:
    """Files that an installed package carries.

    :param name: as an installer calls it.
    :param version: the one that holds these files.
    :param module: its folder among the installed ones.
    :param inside: where in that folder the data is.
    :param suffixes: endings of the files that are data; others beside them are not looked at.
    :param sha256: of all of them, see :meth:`files`.
    """

    name: str
    version: str
    module: str
    inside: str
    suffixes: tuple[str, ...]
    sha256: str

    @property
    def folder(self) -> Path | None:
        """Where its data is; None where the package is not installed."""
        spec = find_spec(self.module)
        places = () if spec is None else spec.submodule_search_locations or ()
        return next((found for place in places if (found := Path(place) / self.inside).is_dir()), None)

    def files(self) -> Mapping[str, bytes]:
        """Contents by path inside the data's folder, in the order of the paths.

        The hash is of a line ``<path> <bytes>`` before the contents of each file.

        Raises:
            DataError: the package is not installed, or its files are not those that were published.
        """
        if self.folder is None:
            raise DataError(f"the package {self.name} is not installed: pip install {self.name}=={self.version}")
        paths = {path.relative_to(self.folder).as_posix(): path for path in self.folder.rglob("*")}
        found = {name: paths[name].read_bytes() for name in sorted(paths) if paths[name].suffix in self.suffixes}
        digest = hashlib.sha256()
        for name, contents in found.items():
            digest.update(f"{name} {len(contents)}\n".encode())
            digest.update(contents)
        if digest.hexdigest() != self.sha256:
            raise DataError(
                f"{self.folder} does not hold the files of {self.name} {self.version}: their SHA-256 is "
                f"{digest.hexdigest()}, expected {self.sha256}; install it anew: "
                f"pip install --force-reinstall --no-deps {self.name}=={self.version}"
            )
        return found
