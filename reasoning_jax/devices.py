"""The start of JAX's backend: in a line where it cannot start, and which devices there are.

Nothing here is imported before a command needs devices.
"""

from __future__ import annotations

import glob
import os

from reasoning_jax import screen
from reasoning_jax.config_fields import ConfigError, show

PLATFORMS = "JAX_PLATFORMS"
# What JAX calls its platforms, and how each is installed here.
_INSTALL = {
    "cuda": 'pip install "reasoning-jax[cuda]"',
    "gpu": 'pip install "reasoning-jax[cuda]"',
    "tpu": 'pip install "reasoning-jax[tpu]"',
    "rocm": "AMD's build of jaxlib and its plugin",
}
# Files that a driver makes for its devices: pattern, what they are, how JAX gets at them.
_DRIVERS = (
    ("/dev/nvidia[0-9]*", "an NVIDIA GPU", _INSTALL["cuda"]),
    ("/dev/accel[0-9]*", "a TPU", _INSTALL["tpu"]),
    ("/dev/kfd", "an AMD GPU", _INSTALL["rocm"]),
)


def start() -> str:
    """Start the backend; returns its devices in words, "8 x NVIDIA H200".

    Raises:
      ConfigError: JAX_PLATFORMS names a platform that cannot start here, or none can.
    """
    import jax

    try:
        devices = jax.devices()
    except Exception as error:
        # JAX raises RuntimeError, ValueError or AssertionError, by platform and version.
        raise ConfigError(_why(error)) from None
    return f"{len(devices)} x {devices[0].device_kind}"


def remark() -> str | None:
    """A line where the backend is a CPU although the machine has an accelerator that nobody ruled
    out; else None. The backend has been started.
    """
    import jax

    if jax.default_backend() != "cpu" or os.environ.get(PLATFORMS):
        return None
    for pattern, what, install in _DRIVERS:
        if glob.glob(pattern):
            return (
                f"this machine has {what}, but this JAX cannot use it and runs on the CPU: "
                f"{install} (or set {PLATFORMS}=cpu to say that this is meant)"
            )
    return None


def tell() -> None:
    """Start the backend and say on stderr what it runs on. Raises ConfigError, as `start` does."""
    screen.say(f"on {start()}")
    if line := remark():
        screen.say(line)


def _why(error: Exception) -> str:
    wanted = os.environ.get(PLATFORMS, "")
    first = str(error).strip().split("\n")[0][:120] or type(error).__name__
    if not wanted:
        return f"JAX cannot start a backend: {first}; {PLATFORMS}=cpu takes the CPU"
    names = [name.strip() for name in wanted.split(",")]
    ways = dict.fromkeys(_INSTALL[name] for name in names if name in _INSTALL)
    unknown = [name for name in names if name and name not in (*_INSTALL, "cpu")]
    if unknown:
        what = f"JAX knows no platform {show(unknown[0])} here; there are cpu, cuda, tpu, rocm"
    elif ways:
        says = f" (JAX says: {first})" if str(error).strip() else ""
        what = f"this JAX cannot start it here{says}; it needs {' or '.join(ways)}, and the device"
    else:
        what = first
    return f"{PLATFORMS}={wanted[:80]}: {what}. {PLATFORMS}=cpu takes the CPU"
