"""The whole program in processes of its own, with whatever libraries print when they are imported and when it ends."""

import os
import subprocess
import sys
from typing import NamedTuple

import pytest


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def sh(tmp_path_factory):
    """`sh("classify a <&-", FLAXSENT_DEBUG="1")`: what a shell makes of `flaxsent …`; they share a compile cache."""
    # What this process or its caller has set for itself is left out.
    own = ("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE", "FLAXSENT_", "TF_CPP_", "PYTHONUNBUFFERED", "XLA_FLAGS")
    plain = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    plain["FLAXSENT_CACHE"] = str(tmp_path_factory.mktemp("compiled"))

    def run(line: str, **environment: str) -> Ended:
        command = ["sh", "-c", f"{sys.executable} -m flaxsent {line}"]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, env=plain | environment
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    return run
