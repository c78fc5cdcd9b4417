"""Checkpoints are whole or absent, and a resumed run is the run that was not interrupted, bit for
bit."""

import errno
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vla.files import writing as write
from vla.files.writing import DiskFull
from vla.training.checkpoint import (
    CorruptCheckpoint,
    best_checkpoint,
    last_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from vla.training.seed import derive_seed, restore_rng, rng_state, seed_everything, torch_generator
from vla.training.state_files import read_state, write_state


def equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return (
            isinstance(b, dict) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
        )
    if isinstance(a, list | tuple):
        return (
            type(a) is type(b)
            and len(a) == len(b)
            and all(equal(x, y) for x, y in zip(a, b, strict=True))
        )
    return type(a) is type(b) and a == b


def test_state_reads_back_equal_in_value_and_type(tmp_path: Path):
    state = {
        "model": {
            "a.weight": torch.randn(3, 2),
            "b": torch.tensor(2, dtype=torch.int32),
            "empty": torch.zeros(0, 4),
        },
        "optimizer": {
            "state": {0: {"step": torch.tensor(1.0)}, 7: {}},
            "betas": (0.9, 0.999),
            "lr": 0.1,
        },
        "half": torch.randn(4).bfloat16(),
        "counters": {
            "iteration": 3,
            "big": 2**100,
            "done": False,
            "none": None,
            "text": "é",
            "$odd": [1, [2.5]],
        },
        "array": np.arange(6, dtype=np.uint32).reshape(2, 3)[:, 1:].copy(),
        "scalar": 1.5,
    }
    write_state(tmp_path, state)
    assert equal(read_state(tmp_path), state)


def test_tied_weights_are_written_once_and_views_apart(tmp_path: Path):
    weight = torch.randn(8, 4)
    write_state(
        tmp_path,
        {"model": {"embed": weight, "head": weight, "first": weight[:2], "turned": weight.T}},
    )
    read = read_state(tmp_path)["model"]
    assert read["head"].data_ptr() == read["embed"].data_ptr()
    assert torch.equal(read["first"], weight[:2])
    assert torch.equal(read["turned"], weight.T)
    assert set(load_file(tmp_path / "model.safetensors")) == {"embed", "first", "turned"}


def test_what_is_no_plain_value_is_refused_by_its_path(tmp_path: Path):
    with pytest.raises(TypeError, match="a checkpoint cannot hold a.1, a set"):
        write_state(tmp_path, {"x": {"a": [1, {2}]}})


class Trainer:
    """A small run that draws from every kind of generator: torch's and NumPy's, own and global, and
    Python's."""

    def __init__(self, seed: int):
        seed_everything(seed)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.generators = {
            "order": torch_generator(seed, "order"),
            "noise": np.random.default_rng(seed),
        }
        self.losses: list[float] = []

    def train(self, num_steps: int) -> None:
        for _ in range(num_steps):
            rows = torch.randn(16, 4, generator=self.generators["order"])
            noise = (
                float(self.generators["noise"].normal()) + random.random() + float(np.random.rand())  # noqa: NPY002
            )
            loss = (self.model(rows) - rows.sum(1, keepdim=True) + 0.01 * noise).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())

    def state(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": rng_state(self.generators),
            "counters": {"step": len(self.losses), "losses": self.losses},
        }

    def restore(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        restore_rng(state["rng"], self.generators)
        self.losses = state["counters"]["losses"]


def test_three_steps_and_three_after_resuming_are_six_steps_bit_for_bit(tmp_path: Path):
    whole = Trainer(seed=1)
    whole.train(6)
    first = Trainer(seed=1)
    first.train(3)
    path = save_checkpoint(tmp_path, 3, first.state(), keep=1)
    second = Trainer(seed=2)
    second.train(1)
    second.restore(load_checkpoint(path))
    second.train(3)
    assert second.losses == whole.losses
    assert equal(dict(second.model.state_dict()), dict(whole.model.state_dict()))
    assert equal(second.optimizer.state_dict(), whole.optimizer.state_dict())


def test_other_generators_than_the_saved_ones_are_refused():
    with pytest.raises(ValueError, match=r"generators \['a'\] do not match the saved ones \[\]"):
        restore_rng(rng_state(), {"a": torch.Generator()})


def test_seeds_for_purposes_are_fixed_and_apart():
    # sha256("0/rollout/3")[:8] >> 1
    import hashlib

    assert (
        derive_seed(0, "rollout", 3)
        == int.from_bytes(hashlib.sha256(b"0/rollout/3").digest()[:8], "big") >> 1
    )
    assert len({derive_seed(s, name) for s in range(10) for name in ("a", "b")}) == 20


STATE = {"model": {"weight": torch.arange(1000.0)}, "counters": {"step": 1}}


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path):
    for step, score in ((1, 0.1), (2, 0.9), (3, None), (4, 0.5), (5, 0.2)):
        save_checkpoint(tmp_path, step, STATE, keep=2, score=score)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "step-000002",
        "step-000004",
        "step-000005",
    ]
    assert best_checkpoint(tmp_path) == tmp_path / "step-000002"
    assert last_checkpoint(tmp_path) == tmp_path / "step-000005"
    save_checkpoint(tmp_path, 6, STATE, keep=2, score=0.9)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000005", "step-000006"]


def test_a_step_can_be_written_again(tmp_path: Path):
    save_checkpoint(tmp_path, 1, STATE, keep=1)
    save_checkpoint(tmp_path, 1, {"counters": 2}, keep=1, texts={"config.yaml": "a: 1\n"})
    assert load_checkpoint(tmp_path / "step-000001") == {"counters": 2}
    assert (tmp_path / "step-000001" / "config.yaml").read_text() == "a: 1\n"


@pytest.mark.parametrize("crash_at", range(1, 5))
def test_a_crash_while_a_step_is_written_again_leaves_a_whole_newest_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
):
    """Whichever of the calls that move or remove folders is the last one: the old or the new one is
    found and whole."""
    save_checkpoint(tmp_path, 1, {"counters": 1}, keep=1)
    calls = 0

    def until_the_crash(function):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls >= crash_at:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", until_the_crash(Path.rename))
        patched.setattr(shutil, "rmtree", until_the_crash(shutil.rmtree))
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, 1, {"counters": 2}, keep=1)
    newest = last_checkpoint(tmp_path)
    assert newest is not None
    assert load_checkpoint(newest) in ({"counters": 1}, {"counters": 2})
    save_checkpoint(tmp_path, 2, {"counters": 3}, keep=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000001", "step-000002"]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("name", "harm", "fault"),
    [
        ("model.safetensors", truncate, r"model.safetensors has 100 bytes, \d+ were written"),
        (
            "model.safetensors",
            flip_a_bit,
            "model.safetensors does not have the checksum that was written",
        ),
        ("state.json", Path.unlink, "state.json is missing"),
        ("manifest.json", truncate, r"manifest.json cannot be read \(no JSON"),
        ("manifest.json", Path.unlink, r"manifest.json cannot be read \(it does not exist"),
    ],
)
def test_a_corrupt_checkpoint_is_named_with_the_last_good_one(
    tmp_path: Path, name: str, harm, fault: str
):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, STATE, keep=3)
    harm(tmp_path / "step-000003" / name)
    with pytest.raises(CorruptCheckpoint, match=fault) as error:
        load_checkpoint(tmp_path / "step-000003")
    assert (
        f"the last good one is {tmp_path / 'step-000002'}: delete step-000003 and resume again"
        in str(error.value)
    )
    flip_a_bit(tmp_path / "step-000002" / "model.safetensors")
    flip_a_bit(tmp_path / "step-000001" / "state.json")
    with pytest.raises(CorruptCheckpoint, match="no other is left"):
        load_checkpoint(tmp_path / "step-000003")


def test_files_are_not_cut_back_to_what_a_corrupt_checkpoint_says(tmp_path: Path):
    from vla.training.run import lines_at_last_checkpoint
    from vla.training.run_folder import RunFolder

    seen = {"num_records": 7, "lines": {"samples.jsonl": 3}}
    path = save_checkpoint(tmp_path / "checkpoints" / "rl", 1, {**STATE, **seen}, keep=1)
    assert lines_at_last_checkpoint(RunFolder(tmp_path)) == (7, {"samples.jsonl": 3})
    (path / "state.json").write_text("{}")
    with pytest.raises(CorruptCheckpoint, match="state.json has 2 bytes"):
        lines_at_last_checkpoint(RunFolder(tmp_path))


def test_another_format_is_refused(tmp_path: Path):
    path = save_checkpoint(tmp_path, 1, STATE, keep=1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 9}))
    with pytest.raises(CorruptCheckpoint, match="has format 9, this version reads 1"):
        load_checkpoint(path)


def test_a_full_disk_keeps_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_checkpoint(tmp_path, 1, STATE, keep=1)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write, "flush_file", full)
    with pytest.raises(
        DiskFull,
        match="^the disk is full, checkpoint .*step-000002 was not written .*step-000001 is intact: make room",
    ):
        save_checkpoint(tmp_path, 2, STATE, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert equal(load_checkpoint(tmp_path / "step-000001"), STATE)


def test_room_is_asked_for_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)
    )
    with pytest.raises(
        DiskFull, match=r"1.1 MB are needed, 0.0 MB are free.*there is no older one"
    ):
        save_checkpoint(tmp_path, 1, STATE, keep=1)
    assert list(tmp_path.iterdir()) == []


def test_another_error_while_writing_leaves_nothing_behind(tmp_path: Path):
    with pytest.raises(TypeError, match="cannot hold"):
        save_checkpoint(tmp_path, 1, {**STATE, "odd": {1, 2}}, keep=1)
    assert list(tmp_path.iterdir()) == []


def test_what_a_crash_left_is_no_checkpoint_and_is_removed(tmp_path: Path):
    left = tmp_path / ".unfinished-step-000002"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    assert list_checkpoints(tmp_path) == []
    save_checkpoint(tmp_path, 3, STATE, keep=1)
    assert not left.exists()
