"""Every text mode from its settings to its report, on a tiny random model: what it writes, and that
it learns."""

import json

import pytest
import yaml
from safetensors import SafetensorError

from vla.config import ConfigError, load
from vla.config.text import Prompts
from vla.data.chat import ChatFormat
from vla.files.writing import DiskFull
from vla.pipelines.text.run import run_in_folder
from vla.rewards.gold_rewards import GOLD_REWARDS
from vla.text.comparisons import compare_by_judge, read_rubric, select_clearest
from vla.text.control_codes import reward_levels, with_control_code
from vla.text.preference_training import Comparison
from vla.text.prompts import Completion, make_prompt_sets
from vla.text.tiny_language_model import tiny_language_model
from vla.training.run_folder import open_run

TINY = [
    "mode=text",
    "language_model=tiny",
    "language_model.vocabulary_size=288",
    "language_model.width=32",
    "language_model.depth=1",
    "train.tensorboard=false",
    "train.num_threads=1",
]
OPEN = [
    "text.generation.max_prompt_tokens=100",
    "text.generation.max_new_tokens=6",
    "text.prompts.num_evaluation=4",
    "text.gold=letters",
]
QUICK = {"fit": 6, "sft": 4, "reward_model": 8}


@pytest.fixture(autouse=True)
def _a_gold_reward_that_a_random_model_can_differ_in(monkeypatch):
    monkeypatch.setitem(
        GOLD_REWARDS, "letters", lambda prompt, text: sum(map(str.isalpha, text)) / 10
    )


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(20)))
    return f"text.prompts.path={path}"


def go(folder, name, *overrides):
    fits = [f"text.{key}.num_steps={QUICK[key]}" for key in QUICK if key in overrides]
    rates = [f"text.{key}.learning_rate=1e-2" for key in QUICK if key in overrides]
    given = [o for o in overrides if o not in QUICK]
    config = load([*TINY, f"text={name}", f"run_dir={folder}", *fits, *rates, *given])
    return run_in_folder(config, open_run(config))


def check(folder, results):
    for name in ("results.json", "report.html", "metrics.jsonl", "model/model.safetensors"):
        assert (folder / name).stat().st_size > 0, name
    assert json.loads((folder / "results.json").read_text())
    assert results["seconds"]["total"] > 0


def test_sft(tmp_path):
    messages = [
        [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "yes"}]
        for i in range(40)
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"messages": m}) + "\n" for m in messages))
    given = [
        f"text.sources=[{data},add1]",
        "text.weights=[1.0,2.0]",
        "text.fit.num_steps=25",
        "text.fit.learning_rate=1e-2",
    ]
    config = load(
        [*TINY, "text=sft", f"run_dir={tmp_path / 'run'}", "text.fit.learning_rate=1e-2", *given]
    )
    results = run_in_folder(config, open_run(config))
    check(tmp_path / "run", results)
    for name in (str(data), "add1"):
        assert results[name]["perplexity after"] < 0.2 * results[name]["perplexity before"]


@pytest.mark.parametrize("name", ["dpo", "kto", "plackett_luce"])
def test_preference(tmp_path, prompts, name):
    results = go(
        tmp_path / "run", "preference", f"preference={name}", "fit", prompts, *OPEN, "text.rounds=2"
    )
    check(tmp_path / "run", results)
    assert set(results) >= {"round 1", "round 2", "gold before", "gold after", "wins among decided"}
    assert 0 <= results["round 1"]["accuracy"] <= 1


def test_preference_from_a_file(tmp_path, prompts):
    rows = [{"prompt": f"say {i}", "chosen": "aaa", "rejected": "111"} for i in range(30)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = f"text.comparisons={tmp_path / 'pairs.jsonl'}"
    results = go(
        tmp_path / "run",
        "preference",
        "text.fit.num_steps=20",
        "text.fit.learning_rate=1e-2",
        prompts,
        *OPEN,
        file,
    )
    assert results["round 1"]["accuracy"] == 1.0
    thumbs = [{"prompt": "say", "completion": "a", "label": True}] * 3
    (tmp_path / "thumbs.jsonl").write_text("\n".join(map(json.dumps, thumbs)))
    with pytest.raises(ValueError, match="holds thumbs: only preference=kto can learn from them"):
        go(
            tmp_path / "other",
            "preference",
            "fit",
            prompts,
            *OPEN,
            f"text.comparisons={tmp_path / 'thumbs.jsonl'}",
        )


def test_rlhf_shows_proxy_and_gold(tmp_path, prompts):
    results = go(
        tmp_path / "run",
        "rlhf",
        "reward_model",
        "sft",
        prompts,
        *OPEN,
        "text.demonstrations=8",
        "rl.num_iterations=3",
        "rl.num_start_states=4",
        "rl.group_size=2",
        "rl.micro_batch_rows=8",
        "text.truncation_reward=null",
    )
    check(tmp_path / "run", results)
    records = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    rl = [record for record in records if record["stage"] == "rl"]
    assert [record["step"] for record in rl] == [1, 2, 3]
    for record in rl:
        assert {
            "proxy",
            "gold",
            "kl_trajectory",
            "entropy",
            "completion_tokens",
            "distinct_pairs",
        } <= set(record)
    assert [record["step"] for record in records if record["stage"] == "reward model"] == list(
        range(1, 9)
    )
    assert rl[0]["kl_trajectory"] == pytest.approx(0, abs=1e-4)  # nothing has moved yet
    assert 0 <= results["reward model"]["accuracy"] <= 1
    assert {"rl/rollout", "rl/update"} <= set(results["seconds"])


def test_rejection(tmp_path):
    results = go(
        tmp_path / "run",
        "rejection",
        "fit",
        "text.families=[add1]",
        "text.rounds=2",
        "text.problems_per_round=4",
        "text.samples_per_prompt=2",
        "text.num_evaluation=8",
        "text.generation.max_new_tokens=5",
        "text.generation.max_prompt_tokens=160",
        "+text.rewards.finished=1.0",
        "text.min_reward=0.0",
    )
    check(tmp_path / "run", results)
    assert results["before"].n == 8


def test_control(tmp_path, prompts):
    results = go(tmp_path / "run", "control", "fit", prompts, *OPEN, "text.levels=2")
    check(tmp_path / "run", results)
    for how in ("", ", guidance 3"):
        by_code = results[f"gold reward by code{how}"]
        assert list(by_code) == ["quality: 1 of 2", "quality: 2 of 2"]
        worst, best = by_code.values()
        assert results[f"best code against worst{how}"].difference == pytest.approx(
            best.mean - worst.mean
        )
    assert results["gold after"] == results["gold reward by code, guidance 3"]["quality: 2 of 2"]


@pytest.mark.parametrize("mode", ["control", "sft"])
def test_a_disk_without_room_for_the_model_costs_the_model_only(
    tmp_path, prompts, monkeypatch, mode
):
    def full(self, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    monkeypatch.setattr("transformers.LlamaForCausalLM.save_pretrained", full)
    given = (
        [prompts, *OPEN] if mode == "control" else ["text.sources=[add1]", "text.row_tokens=200"]
    )
    with pytest.raises(
        DiskFull,
        match="the disk is full, the trained model was not written to .*run/model; results",
    ):
        go(tmp_path / "run", mode, "fit", *given)
    assert not (tmp_path / "run" / "model").exists()
    assert json.loads((tmp_path / "run" / "results.json").read_text())
    assert (tmp_path / "run" / "report.html").stat().st_size > 0


def test_a_code_stands_behind_the_question():
    tokenizer = tiny_language_model(["hello"])[1]
    asked = [{"role": "user", "content": "Say it."}]
    text = tokenizer.decode(with_control_code(ChatFormat(tokenizer), 2, 3).prompt(asked))
    assert text == tokenizer.decode(ChatFormat(tokenizer).prompt(asked)).replace(
        "Say it.", "Say it. (quality: 2 of 3)"
    )
    assert asked == [{"role": "user", "content": "Say it."}]


def test_prompts_are_split_by_their_text_and_cut():
    whole = make_prompt_sets(
        Prompts(path=None, num_train=None, holdout_fraction=0.2, num_evaluation=9)
    )
    few = make_prompt_sets(Prompts(path=None, num_train=7, holdout_fraction=0.2, num_evaluation=9))
    assert len(whole.evaluation) == 9
    assert few.train == whole.train[:7]
    assert few.evaluation == whole.evaluation
    assert set(whole.train).isdisjoint(whole.evaluation)


def test_quantiles():
    assert reward_levels([0.1, 0.5, 0.9, 0.4], 2) == [1, 2, 2, 1]
    assert reward_levels([1, 2, 3, 4, 5, 6], 3) == [1, 1, 2, 2, 3, 3]


def test_rlaif_asks_a_model_for_its_opinion(tmp_path, prompts):
    rubric = tmp_path / "rubric.yaml"
    rubric.write_text(yaml.safe_dump({"principles": ["Be brief."], "examples": []}))
    results = go(tmp_path / "run", "rlaif", "fit", prompts, *OPEN, f"text.judge.rubric={rubric}")
    check(tmp_path / "run", results)
    (tmp_path / "bad.yaml").write_text("principles: 3")
    with pytest.raises(ValueError, match="bad.yaml. must be YAML with principles and examples"):
        read_rubric(str(tmp_path / "bad.yaml"))


def test_constitution(tmp_path, prompts):
    file = tmp_path / "constitution.yaml"
    file.write_text(
        yaml.safe_dump({"principles": [{"critique": "Is it long?", "revision": "Make it short."}]})
    )
    # a random model stops by chance only: long completions at a high temperature make some end by
    # themselves
    results = go(
        tmp_path / "run",
        "constitution",
        "fit",
        "sft",
        prompts,
        *OPEN,
        f"text.constitution={file}",
        "text.rounds=1",
        "text.generation.max_new_tokens=60",
        "text.generation.sampling.temperature=2.0",
    )
    check(tmp_path / "run", results)
    assert results["revised answers"] > 0
    (tmp_path / "bad.yaml").write_text("rules: []")
    with pytest.raises(ValueError, match="text.constitution .*bad.yaml. must be YAML of the form"):
        go(
            tmp_path / "other",
            "constitution",
            prompts,
            *OPEN,
            f"text.constitution={tmp_path / 'bad.yaml'}",
        )


def said(text):
    return Completion("p", [1], text, list(text.encode()), True)


def test_labels():
    from vla.rewards.judges import GoldJudge

    judge = GoldJudge(lambda prompt, text: len(text))
    labels = compare_by_judge(judge, [[said("a"), said("ccc"), said("bb")], [said("a"), said("a")]])
    assert labels.num_undecided == 1
    assert labels.comparisons == [Comparison([1], (list(b"ccc"), list(b"a")), 1.0)]
    whole = compare_by_judge(
        judge, [[said("a"), said("ccc"), said("bb"), said("bb")]], whole=True
    ).comparisons[0]
    assert whole.completions == (list(b"ccc"), list(b"bb"), list(b"a"))


def test_the_clearest_comparisons_are_kept_in_their_order():
    assert select_clearest((0.2, 0.9, 0.5, 0.1), 0.5) == [1, 2]
    assert len(select_clearest((0.2, 0.9, 0.5, 0.1), 0.01)) == 1


def test_mistakes_are_named(tmp_path, prompts):
    with pytest.raises(
        ConfigError, match=r"text.weights=\[1.0,2.0\] must be as many as text.sources=\[add2\]"
    ):
        load(["mode=text", "text=sft", "text.weights=[1.0,2.0]"])
    with pytest.raises(ValueError, match="gold 'letter' is unknown"):
        go(tmp_path / "a", "preference", prompts, *OPEN[:-1], "text.gold=letter")
    (tmp_path / "p.jsonl").write_text('{"question": "x"}\n')
    with pytest.raises(ValueError, match="p.jsonl, line 1: has no text in the column prompt"):
        go(tmp_path / "b", "preference", f"text.prompts.path={tmp_path / 'p.jsonl'}", *OPEN)
