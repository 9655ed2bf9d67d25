"""Compare the start-up time of quick commands with the time of ``import torch`` alone, in alternating runs.

    python benchmarks/startup.py [--runs 9]

The exit code is 1 if a command takes too long. `--help` may take at most 0.6 s. `validate` may take at most 1.3 times
as long as `import torch`, plus 0.5 s.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
HELP_S = 0.6
VALIDATE_RATIO, VALIDATE_S = 1.3, 0.5

TINY_AUDIO = str(Path(sys.executable).with_name("tiny-audio"))
COMMANDS = {
    "import torch": [sys.executable, "-c", "import torch"],
    "--help": [TINY_AUDIO, "--help"],
    "validate": [TINY_AUDIO, "validate", "recipes/quickstart.yaml"],
}


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    for command in COMMANDS.values():
        seconds(command)  # warm-up: reads files into memory
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    median = {name: statistics.median(values) for name, values in times.items()}
    bounds = {"--help": HELP_S, "validate": VALIDATE_RATIO * median["import torch"] + VALIDATE_S}
    print(f"{'':14}{'median':>9}{'min':>9}{'max':>9}{'bound':>9}   (seconds, {runs} runs)")
    for name, values in times.items():
        bound = (
            f"{bounds[name]:9.2f}   {'holds' if median[name] <= bounds[name] else 'FAILS'}" if name in bounds else ""
        )
        print(f"{name:14}{median[name]:9.2f}{min(values):9.2f}{max(values):9.2f}{bound}")
    return int(any(median[name] > bound for name, bound in bounds.items()))


if __name__ == "__main__":
    sys.exit(main())
