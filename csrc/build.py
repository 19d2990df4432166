"""Compile csrc/cpu and csrc/cuda, a shared library each: `python csrc/build.py` puts them into the
checkout.

Only the standard library is used, so that setup.py can call it under build isolation. The compiler
is `CXX`, else Python's own, else c++, g++ or clang++; for CUDA `NVCC`, else nvcc from the path,
from CUDA_HOME or from /usr/local/cuda. No GPU is needed, and no driver. With `--require-cuda` it is
an error if there is no CUDA library in the end.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "cpu"
CUDA_SOURCES = SOURCES.parent / "cuda"
LIBRARY = "libpolaris_cpu.so"
CUDA_LIBRARY = "libpolaris_cuda.so"
PACKAGE = SOURCES.parent.parent / "kernels" / "polaris_kernels"
IN_PLACE = PACKAGE / LIBRARY

FLAGS = (
    "-std=c++17 -O3 -fPIC -fno-exceptions -fno-rtti -fvisibility=hidden -fno-math-errno "
    "-ffp-contract=off -Wall -Wextra -Wno-psabi -Wno-uninitialized "
    "-Wno-maybe-uninitialized -Wno-unknown-pragmas"
).split()
# nothing here may run before the dispatcher has asked the CPU
AVX2 = "-mavx2 -mfma -mf16c".split()
AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512".split()
LEVEL_FLAGS = {
    "level_avx2": AVX2,
    "level_avx512": [*AVX2, *AVX512],
    "gemm_avx512": [*AVX2, *AVX512],
}
# of the last one too, where the compiler knows it (GCC from 10 on)
BF16_FLAG = "-mavx512bf16"

# machine code for A100 and its kin and for Hopper, and what newer chips' drivers compile themselves
CUDA_TARGETS = ("arch=compute_80,code=sm_80", "arch=compute_90a,code=sm_90a",
                "arch=compute_90,code=compute_90")  # fmt: skip
CUDA_FLAGS = (
    "-std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden,-Wall -Xptxas -warn-spills,-Werror "
    "--threads 0"
).split()


class BuildError(Exception):
    """No compiler, or one that does not take the sources; the message says which and why."""


def is_x86() -> bool:
    """True where the AVX levels are built."""
    return platform.machine().lower() in ("x86_64", "amd64")


def find_compiler() -> list[str]:
    """The compiler's command line."""
    if wanted := os.environ.get("CXX"):
        command = shlex.split(wanted)
        if shutil.which(command[0]) is None:
            raise BuildError(f"CXX={wanted} is not there")
        return command
    configured = shlex.split(sysconfig.get_config_var("CXX") or "")[:1]
    for name in (*configured, "c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise BuildError("no C++ compiler found (c++, g++, clang++); set CXX or install one")


def build(target: Path) -> Path:
    """Compile and link `target`, replacing it only when all went well."""
    compiler = find_compiler()
    names = ["dispatch", "level_portable", *(LEVEL_FLAGS if is_x86() else ())]
    flags = [*FLAGS, *(["-DPK_X86"] if is_x86() else [])]
    with tempfile.TemporaryDirectory() as folder:
        openmp = ["-fopenmp"] if _accepts(compiler, "-fopenmp", Path(folder)) else []
        if not openmp:
            print(f"polaris: {compiler[0]} takes no -fopenmp: one thread only", file=sys.stderr)
        level_flags = dict(LEVEL_FLAGS)
        if is_x86() and _accepts(compiler, BF16_FLAG, Path(folder)):
            level_flags["gemm_avx512"] = [*LEVEL_FLAGS["gemm_avx512"], BF16_FLAG]
        objects = [str(Path(folder) / f"{name}.o") for name in names]
        jobs = [
            [*compiler, *flags, *openmp, *level_flags.get(name, ()), "-c",
             str(SOURCES / f"{name}.cpp"), "-o", out]
            for name, out in zip(names, objects, strict=True)
        ]  # fmt: skip
        _run_together(jobs)
        made = Path(folder) / LIBRARY
        _run_together([[*compiler, "-shared", *openmp, *objects, "-o", str(made)]])
        _put(made, target)
    return target


def find_nvcc() -> list[str]:
    """The CUDA compiler's command line."""
    if wanted := os.environ.get("NVCC"):
        command = shlex.split(wanted)
        if shutil.which(command[0]) is None:
            raise BuildError(f"NVCC={wanted} is not there")
        return command
    homes = (os.environ.get("CUDA_HOME"), "/usr/local/cuda")
    for name in ("nvcc", *(str(Path(home) / "bin" / "nvcc") for home in homes if home)):
        if shutil.which(name):
            return [name]
    raise BuildError("no nvcc found; set NVCC or CUDA_HOME, or install the CUDA toolkit")


def build_cuda(target: Path) -> Path:
    """Compile csrc/cuda into `target`, replacing it only when all went well."""
    compiler = find_nvcc()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / CUDA_LIBRARY
        targets = [part for each in CUDA_TARGETS for part in ("-gencode", each)]
        source = str(CUDA_SOURCES / "library.cu")
        _run_together([[*compiler, *CUDA_FLAGS, *targets, "-shared", source, "-o", str(made)]])
        _put(made, target)
    return target


def _put(made: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # in the target's folder, so that the replacement is atomic
    staged = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    shutil.copy2(made, staged)
    os.replace(staged, target)


def _accepts(compiler: list[str], flag: str, folder: Path) -> bool:
    probe = folder / "probe.cpp"
    probe.write_text(
        "#ifdef _OPENMP\n#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n"
        "#else\nint main() { return 0; }\n#endif\n"
    )
    command = [*compiler, flag, str(probe), "-o", str(folder / "probe")]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _run_together(commands: list[list[str]]) -> None:
    pipe = subprocess.PIPE
    running = [subprocess.Popen(c, stdout=pipe, stderr=subprocess.STDOUT) for c in commands]
    outputs = [process.communicate()[0].decode(errors="replace") for process in running]
    for command, process, output in zip(commands, running, outputs, strict=True):
        if process.returncode:
            raise BuildError(f"{shlex.join(command)}\nfailed with:\n{output[-4000:]}")


def main() -> int:
    """Build both; the exit status speaks of the CPU's, as nvcc is optional unless asked for."""
    status = 0
    try:
        print(f"built {build(IN_PLACE)}")
    except BuildError as error:
        print(f"polaris: csrc/cpu was not built: {error}", file=sys.stderr)
        status = 1
    try:
        print(f"built {build_cuda(PACKAGE / CUDA_LIBRARY)}")
    except BuildError as error:
        print(f"polaris: csrc/cuda was not built, Triton will be used: {error}", file=sys.stderr)
        if "--require-cuda" in sys.argv[1:] and not (PACKAGE / CUDA_LIBRARY).exists():
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
