"""Lay one environment under another: what the other lacks is found here. ``python tests/gpu/layer.py OTHER/bin/python``."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path


def main() -> int:
    """Write the file by which the other interpreter finds this one's packages, editable ones too."""
    ask = [sys.argv[1], "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    other = Path(subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip())
    mine = sysconfig.get_path("purelib")
    (other / "layer.pth").write_text(f"import site; site.addsitedir({mine!r})\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
