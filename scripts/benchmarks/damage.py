"""Damaged files: one file of a run or an export is damaged at a time, and all that reads it is asked.

    python scripts/benchmark.py damage runs/NAME --cases 200

A case is told (an error of one line that names the file) or went on (the damage does no harm). A traceback fails.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

TEXTS = (".json", ".yaml", ".jsonl", ".jinja")
WRONG = (None, 5, "x", [], {}, [None], {"x": 1}, -1.5, True)


def flipped(content: bytes) -> bytes:
    changed = bytearray(content or b"\0")
    for place in random.Random(len(content)).sample(range(len(changed)), min(8, len(changed))):
        changed[place] ^= 0x5A
    return bytes(changed)


BYTES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "cut by one": lambda content: content[:-1],
    "garbage": lambda content: random.Random(1).randbytes(300),
    "zeros": lambda content: bytes(len(content)),
    "flipped": flipped,
}
OF_TEXTS: dict[str, Callable[[bytes], bytes]] = {
    **{text.decode(): lambda content, text=text: text for text in (b"[]", b"{}", b"null", b"5", b'"x"')},
    "latin1": lambda content: b"\xff\xfe" + content,
    "nan": lambda content: content.replace(b"0", b"NaN", 3),
    "deep": lambda content: b"[" * 100_000,
}


def damages(path: Path) -> Iterator[tuple[str, bytes | None]]:
    """(name, new content) of all that can happen to a file; None: it is missing."""
    content = path.read_bytes()
    yield "missing", None
    for name, change in (BYTES | OF_TEXTS if path.suffix in TEXTS else BYTES).items():
        yield name, change(content)
    if path.suffix in (".json", ".yaml"):
        values = yaml.safe_load(content)
        for name, changed in wrong_values(values) if isinstance(values, dict) else ():
            yield name, (json.dumps(changed) if path.suffix == ".json" else yaml.safe_dump(changed)).encode()


def wrong_values(values: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The values with one key, or one below it, gone or of another kind."""
    for key, value in values.items():
        yield f"without {key}", {name: other for name, other in values.items() if name != key}
        for wrong in WRONG:
            yield f"{key}={wrong!r}", {**values, key: wrong}
        for below, changed in wrong_values(value) if isinstance(value, dict) else ():
            yield f"{key}.{below}", {**values, key: changed}


def load_settings(folder: Path) -> None:
    from vla.config import load

    load([f"resume={folder}"])


def load_policy(folder: Path) -> None:
    from vla.evaluate.settings import settings_of
    from vla.hub.passport import passport_world
    from vla.stages import robot

    config, weights = settings_of(folder), robot.weights_in(folder)
    if weights is None:
        raise ValueError(f"{folder} holds no policy")
    robot.load_policy(folder, config, passport_world(folder, weights), weights)


def write_report(folder: Path) -> None:
    from vla.report.robot import write_report

    write_report(folder)


def write_card(folder: Path) -> None:
    from vla.hub.card import model_card

    model_card(folder, 1)


def list_episodes(folder: Path) -> None:
    from vla.hub.passport import Shown, read_passport
    from vla.viewer.library import Library

    Library(folder, lambda *_: [], read_passport(folder, Shown)["action_spec"]).lines()


def open_data(folder: Path) -> None:
    from vla.data.demonstrations import open_demonstrations

    open_demonstrations(folder / "demonstrations")


def load_text(folder: Path) -> None:
    from vla.text.language_model import from_folder
    from vla.text.tournament import players_of

    from_folder(str(folder / "model"), None)
    with contextlib.suppress(ValueError):
        players_of([folder])


def open_again(folder: Path) -> None:
    from vla.train.metrics import read_metrics
    from vla.train.run_folder import RunFolder, read_sessions

    RunFolder(folder).read_results(), read_sessions(folder), read_metrics(folder)


READERS: dict[str, tuple[Callable[[Path], None], ...]] = {
    "config.yaml": (load_settings, load_policy, write_report, write_card),
    "policy.json": (load_policy, write_card, list_episodes),
    "starts.json": (write_report, write_card),
    "results.json": (open_again, write_report, write_card),
    "run.json": (open_again, write_report, write_card),
    "metrics.jsonl": (open_again, write_report),
    "manifest.json": (load_policy,),
    "model.safetensors": (load_policy,),
    "tokenizer": (load_policy,),
    "checkpoints": (load_policy,),
    "recordings": (list_episodes,),
    "demonstrations": (open_data, write_report),
    "model": (load_text,),
}
"""What reads a file, by the first part of its path; others (films, plots) are for people."""


def cases(folder: Path, seed: int) -> list[tuple[Path, str, bytes | None, Callable[[Path], None]]]:
    """Every damage to every file, for everything that reads it, in a random order that spreads over the files."""
    found = []
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        first = path.relative_to(folder).parts[0]
        readers = READERS.get(first, ())
        if (folder / "model").is_dir():
            readers = tuple(reader for reader in readers if reader in (load_settings, load_text, open_again))
        of_file = [(path, name, content, reader) for name, content in damages(path) for reader in readers]
        random.Random(seed).shuffle(of_file)
        found += [(number / max(len(of_file), 1), case) for number, case in enumerate(of_file[:60])]
    return [case for _, case in sorted(found, key=lambda pair: (pair[0], str(pair[1][0]), pair[1][1]))]


def verdict(folder: Path, path: Path, content: bytes | None, reader: Callable[[Path], None]) -> tuple[str, str]:
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs and exported policies")
    parser.add_argument("--cases", type=int, default=200, help="of each folder (default %(default)s)")
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
                    print(f"{what} {path.relative_to(folder)} {name} {reader.__name__}: {said[:300]}")
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    return int(counts["TRACEBACK"] + counts["UNCLEAR"] > 0)
