"""All benchmarks, one after the other: ``make benchmarks``. Each prints ratios; run it on an otherwise idle machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NAMES = ("bench_augment", "bench_loop", "bench_turnaround")


def main() -> None:
    for name in NAMES:
        subprocess.run([sys.executable, str(Path(__file__).parent / f"{name}.py")], check=True)


if __name__ == "__main__":
    main()
