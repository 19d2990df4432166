"""The host project of an adapter: imported late, and only in versions that were tested."""

import importlib
import re
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class Host:
    """A package whose insides an adapter relies on."""

    package: str
    first: tuple[int, ...]
    """first release that was tested"""
    last: tuple[int, ...]
    """last release that was tested; its later patch releases are accepted"""

    @property
    def tested(self) -> str:
        """The tested range, for messages and pages."""
        return f">= {_dotted(self.first)}, < {_dotted(self.beyond)}"

    @property
    def beyond(self) -> tuple[int, ...]:
        """The first release that is refused."""
        major, minor = self.last[:2]
        return major, minor + 1

    def load(self, module: str, caller: str) -> ModuleType:
        """Import `module` of the package.

        Raises:
            ImportError: the package is not installed, or its version is outside the tested range.
        """
        try:
            package = importlib.import_module(self.package)
        except ImportError as error:
            raise ImportError(
                f"{caller}: {self.package} cannot be imported ({error}); install "
                f'"{self.package} {self.tested}"'
            ) from error
        version = str(getattr(package, "__version__", "unknown"))
        if not self.first <= release(version) < self.beyond:
            raise ImportError(
                f"{caller}: {self.package} {version} is outside the tested range "
                f"({self.tested}): its insides may have moved; install a tested version"
            )
        return importlib.import_module(module)


def release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "1.16.0.dev2" -> (1, 16, 0); () if there are none."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)
