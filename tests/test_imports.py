"""Importing isospike loads nothing heavy but torch and numpy; import-linter checks layers."""

import subprocess
import sys


def test_importing_isospike_loads_no_heavy_package():
    heavy = ["transformers", "plotly", "rich", "typer", "scipy", "sklearn"]
    script = f"import isospike, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout.strip(), done.stderr.strip()) == ("[]", "")
