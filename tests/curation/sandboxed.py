"""The mark of tests that run something in the sandbox."""

import pytest

from megatron_ring.curation import sandbox

try:
    sandbox.proven()
    MISSING = ""
except sandbox.SandboxError as error:
    MISSING = str(error)
    if "bubblewrap" not in MISSING:  # it does not hold: no reason to skip
        raise
isolated = pytest.mark.skipif(bool(MISSING), reason=MISSING)
