"""A process of its own that compiles for TPUs: `pytest -m tpu -n 0`."""

import jax
import pytest

from flaxsent.bench.chips import ENVIRONMENT


@pytest.fixture(scope="session", autouse=True)
def _looks_for_no_chips():
    """As the command line says it; libtpu reads it once, when it is loaded."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_compilation_cache", False)
        yield
