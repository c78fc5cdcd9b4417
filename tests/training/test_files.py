"""Files that are damaged are told in one line, what is written is the old or the new, and secrets
stay out of it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vla.config import ConfigError, load
from vla.files import writing as write
from vla.files.arrays import load_weights, read_safetensors, read_table, read_tokenizer
from vla.files.policy_manifest import check_export, write_checksums
from vla.files.reading import KEYS, DamagedFile, read_json, read_json_lines, read_text, read_yaml
from vla.files.secrets import mask_secrets
from vla.files.writing import DiskFull, atomic_file, write_json
from vla.finite_checks import check_distribution, check_finite
from vla.training.run_folder import make_numbered_folder, open_run


class Needed(TypedDict):
    __pydantic_config__ = KEYS  # type: ignore[misc]
    name: str
    low: list[float]


WHOLE = {"name": "x", "low": [0.0, 1], "more": None}
DAMAGE = {
    "empty": b"",
    "zeros": bytes(40),
    "cut": json.dumps(WHOLE).encode()[:-9],
    "garbage": bytes(range(128, 200)),
    "latin1": b"\xff\xfe{}",
    "deep": b"[" * 100_000,
    "list": b"[]",
    "null": b"null",
    "number": b"5",
    "nothing in it": b"{}",
    "nan": b'{"name": "x", "low": [NaN]}',
    "too large": b'{"name": "x", "low": [1e999]}',
    "null at a key": b'{"name": null, "low": [0]}',
    "another kind": b'{"name": "x", "low": "abc"}',
    "a boolean": b'{"name": "x", "low": [true]}',
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_json_file_is_told_with_path_fault_and_remedy(tmp_path: Path, damage: str):
    path = tmp_path / "policy.json"
    path.write_bytes(DAMAGE[damage])
    with pytest.raises(
        DamagedFile, match="^[^\n]*policy.json cannot be read: [^\n]+; export it again$"
    ):
        read_json(path, Needed, "export it again")


def test_a_whole_one_is_read_as_it_is_with_a_byte_order_mark_too(tmp_path: Path):
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(WHOLE), encoding="utf-8-sig")
    assert read_json(path, Needed) == WHOLE


@pytest.mark.parametrize(
    "text", ["", "a: [", "a: b: c", "- 1", "5", "null", "\0\0", "a: 1!\n\t- x", "[" * 20_000]
)
def test_damaged_yaml_is_told(tmp_path: Path, text: str):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(DamagedFile, match="^[^\n]*config.yaml cannot be read: [^\n]+$"):
        read_yaml(tmp_path / "config.yaml")


def test_a_folder_and_nothing_in_place_of_a_file_are_told(tmp_path: Path):
    for read in (read_text, read_json, read_yaml, read_safetensors, read_table):
        with pytest.raises(DamagedFile, match="it is a folder"):
            read(tmp_path)
        with pytest.raises(DamagedFile, match="it does not exist"):
            read(tmp_path / "nothing")


def test_lines_are_named_by_number_and_one_that_a_crash_cut_short_is_left_out(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n{"a": 3')
    assert read_json_lines(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n[2]\n')
    with pytest.raises(
        DamagedFile, match="metrics.jsonl, line 2 cannot be read: it is a list of 1"
    ):
        read_json_lines(path)


@pytest.mark.parametrize(
    "change", [lambda b: b[:50], lambda b: b"", lambda b: b[:-1], lambda b: bytes(len(b))]
)
def test_damaged_tensors_tables_and_tokenizers_are_told(tmp_path: Path, change):
    import pyarrow as pa
    import pyarrow.parquet as pq

    save_file({"a": torch.zeros(20)}, tmp_path / "x.safetensors")
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "x.parquet")
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    for name, read in (("x.safetensors", read_safetensors), ("x.parquet", read_table)):
        (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
        with pytest.raises(DamagedFile, match=f"^[^\n]*{name} cannot be read: [^\n]+$"):
            read(tmp_path / name)
    with pytest.raises(DamagedFile, match="tokenizer_config.json cannot be read"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(DamagedFile, match="^[^\n]*tokenizer.json cannot be read: [^\n]+$"):
        read_tokenizer(tmp_path)


def test_weights_are_all_there_of_their_shapes_and_finite(tmp_path: Path):
    model, path = torch.nn.Linear(2, 3), tmp_path / "model.safetensors"
    whole = {name: torch.full_like(tensor, 0.5) for name, tensor in model.state_dict().items()}
    load_weights(model, whole, path)
    assert float(model.weight.detach().sum()) == 3.0
    for wrong, fault in (
        ({"weight": whole["weight"]}, "the tensor bias is missing"),
        ({**whole, "bias": torch.zeros(4)}, r"bias has the shape \[4\], the model expects \[3\]"),
        ({**whole, "more": torch.zeros(1)}, "the tensor more is not of this model"),
        (
            {**whole, "bias": torch.tensor([0.0, float("nan"), 0.0])},
            "the tensor bias holds numbers that are not",
        ),
    ):
        with pytest.raises(DamagedFile, match=fault):
            load_weights(model, wrong, path)


def test_an_export_is_held_against_its_checksums(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "tokenizer").mkdir()
    for name in (
        "model.safetensors",
        "policy.json",
        "starts.json",
        "tokenizer/tokenizer.json",
        "README.md",
    ):
        (tmp_path / name).write_text(name)
    check_export(tmp_path)
    assert "exported by an earlier version, its files are not checked" in capsys.readouterr().err
    write_checksums(tmp_path)
    (tmp_path / "README.md").write_text("edited")
    check_export(tmp_path)
    (tmp_path / "model.safetensors").write_text("model.safetensorz")
    with pytest.raises(
        DamagedFile, match="model.safetensors does not have the checksum .* export the policy again"
    ):
        check_export(tmp_path)


def test_a_file_that_cannot_be_finished_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    monkeypatch.setattr(
        write, "flush_file", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with (
        pytest.raises(DiskFull, match=re.escape(f"the disk is full, {path} was not written")),
        atomic_file(path) as new,
    ):
        new.write_text("half")
    assert read_json(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("address", "left"),
    [
        ("https://user:k3y@host/v1", "https://***@host/v1"),
        ("https://k3y@host:8000/v1?a=1", "https://***@host:8000/v1?a=1"),
        ("https://user:k3/y@host/v1", "https://***@host/v1"),
        ("http://host/v1?api_key=k3y&x=2", "http://host/v1?api_key=***&x=2"),
        ("http://host/v1?x=1&access-token=k3y#z", "http://host/v1?x=1&access-token=***#z"),
        ("s3://bucket/a?X-Amz-Signature=k3y", "s3://bucket/a?X-Amz-Signature=***"),
        ("s3://bucket/a?AWSAccessKeyId=k3y&jwt=k3y", "s3://bucket/a?AWSAccessKeyId=***&jwt=***"),
        (
            "http://host?api%5Fkey=k3y&token[]=k3y&pw=k3y",
            "http://host?api%5Fkey=***&token[]=***&pw=***",
        ),
        (
            "http://host?to=https%3A//a%3Fx=1%26api_key%3Dk3y",
            "http://host?to=https%3A//a%3Fx=1%26api_key%3D***",
        ),
        ("text.judge.url='https://a:k3y@h' rl.x=1", "text.judge.url='https://***@h' rl.x=1"),
        ("http://localhost:8000/@name/v1?tokens=3", "http://localhost:8000/@name/v1?tokens=3"),
        ("no address: me@host, 3:4", "no address: me@host, 3:4"),
    ],
)
def test_secrets_in_addresses_are_masked(address: str, left: str):
    assert mask_secrets(address) == left
    assert mask_secrets(left) == left


def test_a_run_writes_no_secret_and_asks_for_it_when_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from vla.cli import read_config
    from vla.training.trackers import read_run_settings

    monkeypatch.chdir(tmp_path)
    url = "text.judge.url='https://me:k3y@host/v1?api_key=k3y'"
    given = [
        "mode=text",
        "text=preference",
        "text.judge.name=url",
        "text.judge.model=m",
        url,
        "run_dir=here",
    ]
    monkeypatch.setattr(sys, "argv", ["train_vla.py", *given])
    config = load(given)
    assert config.text.judge.url == "https://me:k3y@host/v1?api_key=k3y"
    folder = open_run(config).path
    assert read_run_settings(folder)["text"]["judge"]["url"] == "https://***@host/v1?api_key=***"
    for file in folder.iterdir():
        assert "k3y" not in file.read_text(), file
    with pytest.raises(SystemExit):
        read_config("", [*given, "--cfg", "job"])
    with pytest.raises(SystemExit):
        read_config("", [*given, "text.judge.name=https://me:k3y@host"])
    assert "k3y" not in "".join(capsys.readouterr())
    with pytest.raises(
        ConfigError,
        match=r"text.judge.url was saved without its secret in here: give text.judge.url=",
    ):
        load(["resume=here"])
    assert load(["resume=here", url]).text.judge.url == config.text.judge.url
    assert load(["resume=here", "text.judge.url=http://host/v1"]).text.judge.url == "http://host/v1"


def test_folders_of_one_moment_are_different_ones(tmp_path: Path):
    made = [make_numbered_folder(tmp_path, "now") for _ in range(3)]
    assert [path.name for path in made] == ["now", "now-2", "now-3"]


def test_a_folder_belongs_to_the_process_that_lives(tmp_path: Path):
    """It is free again when the process has been killed."""
    script = (
        "import sys, time; from pathlib import Path; from vla.training.run_lock import "
        "lock_run_folder; "
        "lock_run_folder(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        from vla.training.run_lock import lock_run_folder

        with pytest.raises(ValueError, match=f"process {child.pid} is writing to"):
            lock_run_folder(tmp_path)
        child.kill()
        child.wait()
    lock_run_folder(tmp_path)
    assert (tmp_path / ".process").read_text().split()[0] == str(os.getpid())


def test_what_is_not_finite_is_refused():
    check_finite("actions", torch.zeros(2, 3))
    check_distribution(torch.tensor([[-np.inf, 0.0]]))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(
            FloatingPointError, match="^the policy refuses to act: its actions are not finite"
        ):
            check_finite("actions", torch.tensor([0.0, bad]))
    with pytest.raises(FloatingPointError, match="its log-probabilities are not finite"):
        check_distribution(torch.tensor([[0.0, 1.0], [0.0, float("nan")]]).log_softmax(-1))
