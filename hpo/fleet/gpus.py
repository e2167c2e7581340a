"""Assignment of GPUs to workers, through the environment variable of CUDA."""

import itertools
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

VARIABLE = "CUDA_VISIBLE_DEVICES"
AUTO, NONE = "auto", "none"
QUERY = ("nvidia-smi", "--query-gpu=index", "--format=csv,noheader")
QUERY_TIMEOUT_S = 10.0

# The number of a GPU, or its identifier as CUDA accepts it.
_DEVICE = re.compile(r"\d+|(GPU|MIG)-[\w/-]+")


@dataclass(frozen=True)
class Gpus:
    """GPUs of the workers of a launch.

    Attributes:
        devices: The GPUs in the order of the workers, empty for no GPU; None if the workers choose by themselves.
    """

    devices: tuple[str, ...] | None

    def environment(self, slot: int) -> dict[str, str]:
        """Return the environment variables of the worker in a slot; several workers can share a GPU."""
        if self.devices is None:
            return {}
        return {VARIABLE: self.devices[slot % len(self.devices)] if self.devices else ""}


def parse_gpus(text: str) -> str:
    """Check a value of ``--gpus`` without spaces around it.

    Raises:
        ValueError: if the value is not valid; the message is for the user.
    """
    if text not in (AUTO, NONE) and not all(map(_DEVICE.fullmatch, text.split(","))):
        raise ValueError(f"{text!r} is not auto, none, or a list of GPUs such as 0,1")
    return text


def assign_gpus(value: str, environ: Mapping[str, str] = os.environ, timeout_s: float = QUERY_TIMEOUT_S) -> Gpus:
    """Return the GPUs for a valid value of ``--gpus``.

    With ``auto`` the workers share the GPUs that the environment allows, else all GPUs of the machine.
    """
    if value == NONE:
        return Gpus(())
    if value != AUTO:
        return Gpus(tuple(value.split(",")))
    allowed = environ.get(VARIABLE)
    # Without a GPU, the variable is left as it is.
    return Gpus((_installed(timeout_s) if allowed is None else _visible(allowed)) or None)


def _visible(allowed: str) -> tuple[str, ...]:
    # CUDA ignores the devices after the first invalid one, which is -1 by convention.
    names = (name.strip() for name in allowed.split(","))
    return tuple(itertools.takewhile(lambda name: _DEVICE.fullmatch(name) is not None, names))


def _installed(timeout_s: float) -> tuple[str, ...]:
    """Return the GPUs of this machine; none if its driver cannot be asked."""
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, check=True, timeout=timeout_s)  # noqa: S603  # a fixed command
    except (OSError, subprocess.SubprocessError, UnicodeError):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip().isdecimal())
