"""Build hook: everything declarative lives in pyproject.toml; this compiles csrc/cpu.

The shared library is plain C called through ctypes: no torch and no Python headers, so one wheel
serves every Python and torch. A missing compiler costs the native backend, not the install.
"""

import importlib.util
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

# the root is not on the path under build isolation
_spec = importlib.util.spec_from_file_location(
    "csrc_build", Path(__file__).parent / "csrc/build.py"
)
native = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(native)


class BuildNative(build_ext):
    """Compile by csrc/build.py instead of as a Python extension module."""

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split(".")[:-1]) / native.LIBRARY)

    def build_extension(self, ext):
        try:
            native.build(Path(self.get_ext_fullpath(ext.name)).absolute())
        except native.BuildError as error:
            print(
                f"polaris: the native CPU backend was NOT built, torch will be used: {error}",
                file=sys.stderr,
            )


class AnyPython(bdist_wheel):
    """The wheel depends on the platform, not on the Python version."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            "polaris_kernels.libpolaris_cpu",
            sources=sorted(str(p) for p in Path("csrc/cpu").glob("*.cpp")),
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": AnyPython},
)
