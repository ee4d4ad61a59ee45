"""Count what was tried and what came of it: bad inputs, kills, altered files, random programs. Prints a table.

python scripts/reliability.py [--kills 10] [--files 100000] [--programs 300]
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import warnings
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def bad_inputs() -> str:
    """Rows of the table of bad inputs that are refused as they should be."""
    code = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/bridge/test_bad_inputs.py"]
    done = subprocess.run([sys.executable, *code], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1].strip("= ")


def kills(count: int) -> str:
    """Processes killed at random moments whose next run ends in the posterior of an undisturbed one."""
    from tests.bridge.test_fitting import KILLED

    def start(folder: Path) -> subprocess.Popen[str]:
        code = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(KILLED), str(folder)]
        return subprocess.Popen(code, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    draw, same = random.Random(0), 0
    with tempfile.TemporaryDirectory() as top:
        straight = start(Path(top, "straight")).communicate()[0].splitlines()[-1]
        for number in range(count):
            process = start(Path(top, str(number)))
            assert process.stdout is not None
            for _ in range(draw.randrange(1, 40)):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
            process.communicate()
            same += start(Path(top, str(number))).communicate()[0].splitlines()[-1] == straight
    return f"{same} of {count} end in the same bits"


def files(count: int) -> str:
    """Altered files that are refused, or hold what was saved all the same."""
    import torch

    from bridge.serialization import pack, unpack
    from tests.bridge.test_state import mutated

    data = pack({"a": torch.randn(20, 5), "b": torch.tensor(2.0)}, {"structure": "full", "numbers": list(range(20))})
    whole, found = unpack(data, "whole"), Counter[str]()
    for seed in range(count):
        try:
            record = unpack(mutated(data, seed), "a file")
        except ValueError:
            found["refused"] += 1
            continue
        same = record.described == whole.described
        same &= all(torch.equal(record.tensors[name], tensor) for name, tensor in whole.tensors.items())
        found["unchanged by the change" if same else "BELIEVED"] += 1
    return ", ".join(f"{number:,} {name}" for name, number in sorted(found.items()))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--files", type=int, default=100_000)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print("| tried | outcome |\n|---|---|")
    print(f"| bad inputs: models, losses, options, loaders, targets, files | {bad_inputs()} |", flush=True)
    print(f"| fits killed at a random moment, {args.kills} | {kills(args.kills)} |", flush=True)
    print(f"| files altered at random, {args.files:,} | {files(args.files)} |", flush=True)


if __name__ == "__main__":
    main()
