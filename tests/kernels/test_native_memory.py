"""Large results of the native backend get their pages before they are written."""

import ctypes
import mmap
import platform
from pathlib import Path

import pytest
import torch

from polaris_kernels.backends import native_library
from polaris_kernels.backends.native_library import LibraryError, NativeLibrary

if not native_library.PATH.exists():
    pytest.skip(native_library.REBUILD, allow_module_level=True)

KERNEL = tuple(map(int, platform.release().split("-")[0].split(".")[:2]))
needs_linux = pytest.mark.skipif(
    platform.system() != "Linux" or KERNEL < (5, 14), reason="Linux 5.14 can populate pages"
)
LARGE = 48 * 2**20


@pytest.fixture(scope="module")
def library():
    return NativeLibrary()


def resident_pages(memory):
    """How many pages of a mapping exist."""
    flags = (ctypes.c_ubyte * (len(memory) // mmap.PAGESIZE))()
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert not ctypes.CDLL(None).mincore(
        ctypes.c_void_p(start), ctypes.c_size_t(len(memory)), flags
    )
    return sum(flag & 1 for flag in flags)


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@needs_linux
@pytest.mark.parametrize("threads", [1, 3])
def test_whole_pages_inside_are_backed_and_no_others(library, threads):
    memory = mmap.mmap(-1, 64 * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    call = library._library.pk_back_pages
    assert call(start + 10, 3 * mmap.PAGESIZE, threads) == 0
    assert resident_pages(memory) == 2
    assert call(start + 10, 100, threads) == 0
    assert resident_pages(memory) == 2
    memory[5 * mmap.PAGESIZE] = 7
    assert call(start, len(memory), threads) == 0
    assert resident_pages(memory) == 64
    assert memory[5 * mmap.PAGESIZE] == 7


@needs_linux
def test_a_large_tensor_has_its_memory_before_anybody_writes_it(library):
    before = resident_bytes()
    made = library.empty((LARGE // 4,), torch.float32)
    assert resident_bytes() - before > 0.9 * LARGE
    assert made.shape == (LARGE // 4,) and made.dtype == torch.float32


def test_a_tensor_of_no_elements_is_made_too(library):
    assert library.empty((0, 4), torch.bfloat16).shape == (0, 4)


def test_memory_that_is_none_is_refused(library):
    with pytest.raises(LibraryError, match="pk_back_pages"):
        library._call(library._library.pk_back_pages, None, 4096, 1)
    assert library._library.pk_back_pages(4096, -1, 1) == 1
