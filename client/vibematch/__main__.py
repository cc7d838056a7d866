"""``python -m vibematch``: the same as the ``vibematch`` command."""

from __future__ import annotations

import sys

from vibematch.cli import main

sys.exit(main())
