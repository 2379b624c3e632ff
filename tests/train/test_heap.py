"""malloc as training on CPUs asks it to be, in processes of their own."""

import platform
import subprocess
import sys

import pytest

from reasoning_jax.train import heap

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="malloc of other C libraries is left alone"
)

GROWN = """
import ctypes
from reasoning_jax.train.heap import keep_freed_memory
assert keep_freed_memory() is True
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
libc.free.argtypes = (ctypes.c_void_p,)
libc.free(libc.malloc(3 << 30))
size = 0
for line in open("/proc/self/maps"):
    if "[heap]" in line:
        begin, end = (int(x, 16) for x in line.split()[0].split("-"))
        size += end - begin
print(size)
"""

RATIONED = """
import mmap, os, resource
from reasoning_jax.train.heap import keep_freed_memory
half = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE // 2
limit = half + (2 << 30)
resource.setrlimit(resource.RLIMIT_{kind}, (limit, limit))
keep_freed_memory()
others = mmap.mmap(-1, 3 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
print(len(others) + sum(bytearray(100 << 20)))
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_what_was_freed_stays_whatever_its_size():
    # Catches: a threshold of 2 GiB, above which all is given back, huge pages too.
    assert run(GROWN) >= 3 << 30


@pytest.mark.parametrize("kind", ["AS", "DATA"])
def test_rationed_address_space_is_left_to_others(kind):
    # Catches: half the machine's memory taken where a process may have little more.
    assert run(RATIONED.format(kind=kind)) == 3 << 30


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda _: object())
    assert heap.keep_freed_memory() is False
