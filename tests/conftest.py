"""What all tests share: none of them reads or writes what this machine's user has measured before."""

from __future__ import annotations

import os
import tempfile

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="insitu-tests-")
