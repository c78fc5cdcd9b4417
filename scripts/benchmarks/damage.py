"""Damaged files: damage one file of a run or an export at a time, and read the folder again.

    python scripts/benchmark.py damage runs/NAME --cases 200

A case is refused (an error of one line that names the file) or accepted (the damage does no harm).
A traceback or an error that names no file fails the benchmark.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from benchmarks.damaged.contents import damaged_contents
from benchmarks.damaged.readers import (
    READERS,
    Reader,
    load_settings,
    load_text,
    read_run_files,
)

MAX_CASES_A_FILE = 60


@dataclass(frozen=True)
class DamageCase:
    """One damage to one file, and one reader of the folder. `content` None: the file is missing."""

    path: Path
    damage: str
    content: bytes | None
    reader: Reader


def list_cases(folder: Path, seed: int) -> list[DamageCase]:
    """Every damage to every file for each of its readers, in a random order.

    The order spreads over the files: any beginning of the list covers each of them alike.
    """
    ranked = []
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        readers = READERS.get(path.relative_to(folder).parts[0], ())
        if (folder / "model").is_dir():
            text_readers = (load_settings, load_text, read_run_files)
            readers = tuple(reader for reader in readers if reader in text_readers)
        cases = [
            DamageCase(path, damage, content, reader)
            for damage, content in damaged_contents(path)
            for reader in readers
        ]
        random.Random(seed).shuffle(cases)
        ranked += [
            (number / max(len(cases), 1), case)
            for number, case in enumerate(cases[:MAX_CASES_A_FILE])
        ]
    ranked.sort(key=lambda pair: (pair[0], str(pair[1].path), pair[1].damage))
    return [case for _, case in ranked]


def run_case(folder: Path, case: DamageCase) -> tuple[str, str]:
    """The verdict on one case and the error message; the file is restored afterwards."""
    original = case.path.read_bytes()
    if case.content is None:
        case.path.unlink()
    else:
        case.path.write_bytes(case.content)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            case.reader(folder)
    except (ValueError, OSError) as error:
        message = str(error)
        names_file = str(folder) in message or case.path.name in message
        is_clear = names_file or type(error).__name__ == "ConfigError"
        return ("refused" if is_clear and message.strip() else "UNCLEAR", message)
    except Exception as error:
        return "TRACEBACK", f"{type(error).__name__}: {error}"
    finally:
        case.path.write_bytes(original)
    return "accepted", ""


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
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(shutil.copytree(original, Path(temporary) / "run"))
            for case in list_cases(folder, options.seed)[: options.cases]:
                verdict, message = run_case(folder, case)
                counts[verdict] += 1
                if verdict in ("TRACEBACK", "UNCLEAR"):
                    file = case.path.relative_to(folder)
                    reader = case.reader.__name__
                    print(f"{verdict} {file} {case.damage} {reader}: {message[:300]}")
    print(", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())))
    return int(counts["TRACEBACK"] + counts["UNCLEAR"] > 0)
