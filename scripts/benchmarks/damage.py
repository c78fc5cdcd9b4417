"""Damaged files: one file of a run or an export is damaged at a time, and all that reads it is
asked.

    python scripts/benchmark.py damage runs/NAME --cases 200

A case is told (an error of one line that names the file) or went on (the damage does no harm). A
traceback fails.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benchmarks.damaged.contents import damages
from benchmarks.damaged.readers import READERS, load_settings, load_text, open_again


def cases(folder: Path, seed: int) -> list[tuple[Path, str, bytes | None, Callable[[Path], None]]]:
    """Every damage to every file, for everything that reads it, in a random order that spreads over
    the files."""
    found = []
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        first = path.relative_to(folder).parts[0]
        readers = READERS.get(first, ())
        if (folder / "model").is_dir():
            readers = tuple(
                reader for reader in readers if reader in (load_settings, load_text, open_again)
            )
        of_file = [
            (path, name, content, reader) for name, content in damages(path) for reader in readers
        ]
        random.Random(seed).shuffle(of_file)
        found += [(number / max(len(of_file), 1), case) for number, case in enumerate(of_file[:60])]
    return [
        case for _, case in sorted(found, key=lambda pair: (pair[0], str(pair[1][0]), pair[1][1]))
    ]


def verdict(
    folder: Path, path: Path, content: bytes | None, reader: Callable[[Path], None]
) -> tuple[str, str]:
    """What becomes of one case; the file is as it was afterwards."""
    whole = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            reader(folder)
    except (ValueError, OSError) as error:
        said = str(error)
        clear = str(folder) in said or path.name in said or type(error).__name__ == "ConfigError"
        return ("told" if clear and said.strip() else "UNCLEAR", said)
    except Exception as error:
        return "TRACEBACK", f"{type(error).__name__}: {error}"
    finally:
        path.write_bytes(whole)
    return "went on", ""


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", help="folders of finished runs and exported policies"
    )
    parser.add_argument(
        "--cases", type=int, default=200, help="of each folder (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    counts: Counter[str] = Counter()
    for original in options.runs:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(shutil.copytree(original, Path(place) / "run"))
            for path, name, content, reader in cases(folder, options.seed)[: options.cases]:
                what, said = verdict(folder, path, content, reader)
                counts[what] += 1
                if what in ("TRACEBACK", "UNCLEAR"):
                    print(
                        f"{what} {path.relative_to(folder)} {name} {reader.__name__}: {said[:300]}"
                    )
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    return int(counts["TRACEBACK"] + counts["UNCLEAR"] > 0)
