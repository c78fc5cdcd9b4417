"""From a trained run to results that can be believed, to a page, an exported folder and a server,
by the commands."""

from __future__ import annotations

import json
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects

import vla.runtime
from tests.test_pipeline import TINY
from vla.commands import evaluate
from vla.commands import export as export_policy
from vla.commands import serve as serve_policy
from vla.commands import train as train_vla
from vla.commands import view as view_rollouts
from vla.data.episode_recording import load_recording
from vla.evaluation.checkpoint_settings import checkpoint_settings
from vla.interop.hub.pretrained import from_pretrained, push_to_hub
from vla.pipelines.robot.policy import load_policy
from vla.simulator import make_simulator
from vla.viewer.episodes import open_library

FEW = [
    "data.num_demonstrations=2",
    "grounding.num_steps=2",
    "sft.head_steps=2",
    "sft.num_steps=2",
    "sft.evaluate_every=2",
    "rl.num_iterations=1",
    "rl.evaluate_every=1",
    "rl.warmup_iterations=0",
    "rl.num_critic_warmup_iterations=0",
    "rl.greedy_branching_every=null",
    "evaluation.num_starts=3",
    "evaluation.num_videos=1",
]


@pytest.fixture(scope="module", autouse=True)
def torch_may_be_loaded():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vla.runtime, "prepare", lambda *arguments, **settings: None)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trial") / "run"
    assert train_vla.main([*TINY, *FEW, f"run_dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def exported(run) -> Path:
    folder = run.parent / "exported"
    assert export_policy.main([str(run), str(folder)]) == 0
    return folder


def judged(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def test_a_checkpoint_is_judged_under_every_perturbation_asked_for(run, capsys):
    assert (
        evaluate.main(
            [
                str(run),
                "--perturb",
                "camera",
                "--videos",
                "1",
                "--output",
                str(run / "evaluations" / "a"),
            ]
        )
        == 0
    )
    told = capsys.readouterr().out
    assert re.search(
        r"as trained, greedy: 0.0 % \(0/3, 95 % Wilson interval 0.0 to 56.1, greedy\)", told
    )
    result = judged(run / "evaluations" / "a")
    found = [(c["condition"], c["decoding"], c["n"]) for c in result["conditions"]]
    assert found == [
        ("as trained", "greedy", 3),
        ("as trained", "sampled", 3),
        ("camera", "greedy", 3),
        ("camera", "sampled", 3),
    ]
    assert {c["condition"] for c in result["changes"]} == {"camera"}
    assert result["seconds_per_query"]["median"] > 0
    assert sum(row["n"] for row in result["conditions"][0]["groups"].values()) == 3
    # The held-out greedy outcomes are those that the run itself reported.
    own = json.loads((run / "results.json").read_text())["stages"]["evaluation_after"]["greedy"]
    nominal = result["conditions"][0]
    assert nominal["items"]["value"] == own["items"]["value"]
    assert nominal["measures"]["return"] == pytest.approx(own["measures"]["return"])
    assert result["starts"]["sha256"] == json.loads((run / "starts.json").read_text())["sha256"]
    page = (run / "evaluations" / "a" / "evaluation.html").read_text()
    assert "0 of 3; 95 % interval 0.0 to 56.1 %" in page
    assert "data:video/mp4;base64," in page


def test_judging_twice_gives_the_same_numbers(run):
    for name in "bc":
        assert (
            evaluate.main(
                [str(run), "--perturb", "none", "--videos", "0", "--output", str(run.parent / name)]
            )
            == 0
        )
    first, second = (judged(run.parent / name)["conditions"] for name in "bc")
    assert first == second


def test_a_folder_that_is_no_run_is_answered_with_the_nearest_one(run, capsys):
    for command in (evaluate.main, view_rollouts.main):
        with pytest.raises(SystemExit):
            command([f"{run}s"])
        assert f"did you mean {run}?" in capsys.readouterr().err


def test_two_checkpoints_are_compared_start_by_start(run, exported):
    folder = run.parent / "compared"
    assert (
        evaluate.main(
            ["--compare", str(run), str(exported), "--perturb", "none", "--output", str(folder)]
        )
        == 0
    )
    result = json.loads((folder / "comparison.json").read_text())
    # An exported policy is the same policy: nothing is gained, nothing lost.
    assert [(t["gained"], t["lost"], t["mcnemar_exact_p"]) for t in result["b_against_a"]] == [
        (0, 0, 1.0)
    ] * 2
    assert "not significant" in (folder / "comparison.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["evaluation.eval_seeds={first: 0, last: 99}"],
            "evaluation.eval_seeds .0 to 99. overlap evaluation.train_seeds",
        ),
        (
            ["--perturb", "none", "evaluation.num_start=3"],
            "evaluation.num_start=3: no such setting; did you mean evaluation.num_starts?",
        ),
        (["--perturb", "camra"], "--perturb camra: no such perturbation; did you mean camera?"),
        (["sim=pick_plaice"], "sim=pick_plaice: no such option; did you mean pick_place?"),
    ],
)
def test_what_cannot_be_believed_is_refused(run, capsys, words, message):
    with pytest.raises(SystemExit):
        evaluate.main([str(run), *words])
    assert re.search(message, capsys.readouterr().err)


def test_starts_with_a_demonstration_are_refused(run, capsys, tmp_path):
    # The run's own ranges say nothing of where its demonstrations came from.
    copy = shutil.copytree(run, tmp_path / "run")
    starts, config = (
        json.loads((copy / "starts.json").read_text()),
        yaml.safe_load((copy / "config.yaml").read_text()),
    )
    first = int(first_seed(copy))
    config["evaluation"]["train_seeds"] = {"first": 5_000_000, "last": 6_000_000}
    config["evaluation"]["eval_seeds"] = {"first": first, "last": first + 10}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    del starts
    (copy / "starts.json").unlink()
    with pytest.raises(SystemExit):
        evaluate.main([str(copy)])
    assert f"evaluation.eval_seeds holds start {first}, of which" in capsys.readouterr().err


def first_seed(run: Path) -> int:
    import pyarrow.parquet as parquet

    (file,) = (run / "demonstrations" / "data").rglob("*.parquet")
    return parquet.read_table(file, columns=["seed"])["seed"].to_numpy().min()


def test_training_records_episodes_that_can_be_lived_again(run):
    (path,) = (run / "recordings").glob("rl-*.safetensors")
    found = load_recording(path)
    assert found.iteration == 1
    assert len(found.seed) == 4  # two starts, two trajectories each
    assert found.advantages is not None
    assert found.logprobs_after is not None
    assert found.values is not None
    library = open_library(run)
    identities = [line["id"] for line in library.summaries() if line["stage"] == "rl"]
    for identity in identities:
        assert library.episode(identity)["faithful"], identity


def test_every_run_writes_its_report(run):
    page = (run / "report.html").read_text()
    assert "Success after RL, greedy" in page
    assert "0 of 3; 95 % interval" in page
    assert "Terms reached" in page
    assert "data:video/mp4;base64," in page
    assert "LeRobotDataset v3" in page


def test_an_exported_policy_decides_as_the_run_does(run, exported):
    assert {path.name for path in exported.iterdir()} == {
        "README.md",
        "config.json",
        "config.yaml",
        "policy.json",
        "starts.json",
        "model.safetensors",
        "tokenizer",
        "policy_preprocessor.json",
        "policy_postprocessor.json",
        "manifest.json",
    }
    policy, observe, world, _ = from_pretrained(str(exported), make_simulator)
    own, own_observe = load_policy(run, checkpoint_settings(run), world)
    seen = world.environment().reset([2_000_000, 2_000_001], np.arange(2))
    one, other = policy.act(observe(seen), greedy=True), own.act(own_observe(seen), greedy=True)
    np.testing.assert_array_equal(one.action.numpy(), other.action.numpy())
    card = (exported / "README.md").read_text()
    assert "library_name: vla" in card
    assert "| after RL | greedy | 0.0 % | 0/3 | 0.0 to 56.1 % |" in card
    assert "| gripper | sign | absolute | -1 to 1 |" in card
    assert str(run.parent) not in (exported / "config.yaml").read_text()


def test_a_policy_spec_that_does_not_fit_is_refused(exported, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "other")
    policy_spec = json.loads((copy / "policy.json").read_text())
    policy_spec["action_spec"]["gripper_sign"] = "open"
    (copy / "policy.json").write_text(json.dumps(policy_spec))
    with pytest.raises(ValueError, match="action spec: gripper_sign is 'open' in the policy in"):
        from_pretrained(str(copy), make_simulator)
    with pytest.raises(ValueError, match="neither a folder nor a repository on the hub"):
        from_pretrained("nowhere at all", make_simulator)


class FakeHub:
    """Keeps what is uploaded, by the patterns that the hub's client itself applies."""

    def __init__(self, folder: Path):
        self.folder, self.made = folder, []

    def create_repo(self, repository: str, private: bool, exist_ok: bool) -> None:
        self.made.append((repository, private, exist_ok))

    def upload_folder(self, repo_id: str, folder_path: Path, allow_patterns: list[str]) -> None:
        there = [
            str(path.relative_to(folder_path)) for path in folder_path.rglob("*") if path.is_file()
        ]
        for name in filter_repo_objects(there, allow_patterns=allow_patterns):
            target = self.folder / repo_id / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder_path / name, target)

    def snapshot_download(
        self, repository: str, allow_patterns: list[str], revision: str | None = None
    ) -> str:
        if not (self.folder / repository).exists():
            raise LocalEntryNotFoundError(f"nobody has {repository}")
        return str(self.folder / repository)


def test_what_goes_to_the_hub_comes_back_and_nothing_that_could_run(
    run, tmp_path, monkeypatch, capsys
):
    hub = FakeHub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    folder = tmp_path / "exported"
    assert export_policy.main([str(run), str(folder), "--push", "me/picker", "--private"]) == 0
    assert "https://huggingface.co/me/picker" in capsys.readouterr().out
    assert hub.made == [("me/picker", True, True)]
    (folder / "train.py").write_text("raise SystemExit")
    (folder / "weights.pt").write_bytes(b"")
    push_to_hub(folder, "me/picker", private=True)
    there = {
        str(path.relative_to(tmp_path / "hub" / "me" / "picker"))
        for path in (tmp_path / "hub").rglob("*.*")
    }
    assert not {name for name in there if name.endswith((".py", ".pt", ".bin", ".pkl"))}
    assert {"README.md", "model.safetensors", "policy.json", "tokenizer/tokenizer.json"} <= there
    policy, observe, world, config = from_pretrained("me/picker", make_simulator)
    own, own_observe = load_policy(run, checkpoint_settings(run), world)
    seen = world.environment().reset([2_000_000], np.arange(1))
    one, other = policy.act(observe(seen), greedy=True), own.act(own_observe(seen), greedy=True)
    np.testing.assert_array_equal(one.action.numpy(), other.action.numpy())
    assert config.model.checkpoint is None
    with pytest.raises(
        ValueError, match=r"me/nothing is no local folder, and cannot be downloaded from the hub"
    ):
        from_pretrained("me/nothing", make_simulator)


def test_a_served_run_drives_the_simulator_as_it_does_at_home(exported):
    import asyncio

    from vla.serve.client import ChunkPlayer, RemotePolicy

    server = serve_policy.open_server(serve_policy.parse([str(exported), "--port", "0"]))
    ready, ports, loop = threading.Event(), [], asyncio.new_event_loop()
    task = loop.create_task(
        server.run("127.0.0.1", 0, lambda port: (ports.append(port), ready.set()))
    )

    def work() -> None:
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert ready.wait(60)
        policy, observe, world, config = from_pretrained(str(exported), make_simulator)
        env = world.environment()
        remote = RemotePolicy(f"ws://127.0.0.1:{ports[0]}")
        remote.check(env.action_spec.to_dict())
        chunks = ChunkPlayer(remote.infer, ahead=0)
        seen = env.reset([2_000_000], np.array([0]))
        images = {name: pictures[0] for name, pictures in seen.images.items()}
        message = {"images": images, "state": seen.proprio[0], "prompt": seen.instruction[0]}
        actions = np.stack([chunks.next(message) for _ in range(config.policy.chunk)])
        np.testing.assert_array_equal(
            actions, policy.act(observe(seen), greedy=True).action[0].numpy()
        )
        remote.close()
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        server.batcher.thread.shutdown()
