"""TRL's GRPO steps for `text_grpo`."""

import argparse
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from benchmarks.text.questions import SEED, questions, reward


def measure_steps(options: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """Seconds and tokens of every step, which ends with its optimizer step; the first warms up."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from datasets import Dataset  # type: ignore[attr-defined]

    texts = questions(options.prompts * (options.steps + 1))
    prompts = Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in texts])
    lengths: list[int] = []
    steps: list[dict[str, float]] = []

    def score(
        completions: list[list[dict[str, str]]], completion_ids: list[list[int]], **_: object
    ) -> list[float]:
        lengths.append(sum(map(len, completion_ids)))
        return [reward(completion[0]["content"]) for completion in completions]

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: object, **__: object) -> None:
            self.wall = time.perf_counter()
            self.cpu = time.process_time()

        def on_step_end(self, *_: object, **__: object) -> None:
            wall = time.perf_counter()
            cpu = time.process_time()
            steps.append({"wall": wall - self.wall, "cpu": cpu - self.cpu, "tokens": sum(lengths)})
            lengths.clear()
            self.wall = wall
            self.cpu = cpu

    rows = options.prompts * options.group_size
    micro = min(options.micro_batch, rows)
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(prefix="trl-"),
        per_device_train_batch_size=micro,
        max_steps=options.steps + 1,
        gradient_accumulation_steps=rows // micro,
        num_generations=options.group_size,
        temperature=1.0,
        beta=0.0,
        max_completion_length=options.new_tokens,
        learning_rate=1e-6,
        use_cpu=True,
        report_to=[],
        bf16=options.precision == "bfloat16",
        save_strategy="no",
        logging_strategy="no",
        gradient_checkpointing=False,
        shuffle_dataset=False,
        seed=SEED,
        disable_tqdm=True,
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with redirect_stdout(StringIO()):
        GRPOTrainer(
            model,
            score,
            args=config,
            train_dataset=prompts,
            processing_class=tokenizer,
            callbacks=[Clock()],
        ).train()
    return steps
