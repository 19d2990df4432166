"""Build hook: everything declarative lives in pyproject.toml; this compiles csrc.

The shared libraries are plain C called through ctypes: no torch and no Python headers, so one wheel
serves every Python and torch. A missing compiler or nvcc costs a backend, not the install.
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
        *package, library = fullname.split(".")
        return str(Path(*package) / f"{library}.so")

    def build_extension(self, ext):
        target = Path(self.get_ext_fullpath(ext.name)).absolute()
        is_cuda = target.name == native.CUDA_LIBRARY
        try:
            (native.build_cuda if is_cuda else native.build)(target)
        except native.BuildError as error:
            which, instead = ("CUDA", "Triton") if is_cuda else ("native CPU", "torch")
            print(
                f"polaris: the {which} backend was NOT built, {instead} will be used: {error}",
                file=sys.stderr,
            )


class AnyPython(bdist_wheel):
    """The wheel depends on the platform, not on the Python version."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            f"polaris_kernels.{Path(library).stem}",
            sources=sorted(str(p) for p in Path("csrc").glob(pattern)),
            optional=True,
        )
        for library, pattern in (
            (native.LIBRARY, "cpu/*.cpp"),
            (native.CUDA_LIBRARY, "cuda/*.cu"),
        )
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": AnyPython},
)
