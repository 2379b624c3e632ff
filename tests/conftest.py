"""Eight virtual CPU devices, a compilation cache for the session, absl flags marked as parsed."""

import atexit
import gc
import os
import shutil
import subprocess
import sys
import tempfile

# Tests compile the same programs again and again, also in subprocesses: one cache for the session.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _CACHE = tempfile.mkdtemp(prefix="reasoning-jax-compiled-")
    atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import pytest


@pytest.fixture(scope="session", autouse=True)
def _absl_flags_parsed():
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="module", autouse=True)
def _programs_are_let_go():
    """Compiled code is mapped memory, and a process may have only so many maps (65,530 by default):
    all programs of all tests do not fit. What is needed again is read from the session's cache.
    """
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()


@pytest.fixture
def quick_to_compile(monkeypatch):
    """One device and code that is not optimised: compiling is most of a short run."""
    import jax

    device = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: device)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def unoptimised():
    """For a whole module: code that is not optimised. Compiling is most of such tests."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB that really is full where a test fills it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=400", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
