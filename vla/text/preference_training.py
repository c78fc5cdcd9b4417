"""Preference training of a policy or a reward model, on comparisons and thumbs of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vla.data.chat import ChatFormat, observe_prompts
from vla.data.preferences import BinaryFeedback, Ranking
from vla.policies.text import TextPolicy
from vla.preference.kto import balanced_weights, kto_baseline, kto_terms, mismatched_prompts
from vla.preference.listwise import pairwise_terms, ranked_pairs
from vla.preference.objective import KTO, Objective, PlackettLuce, comparison_terms, needs_reference
from vla.rewards.reward_model import RewardModel
from vla.sft.examples import evaluate_rows, train_on_examples
from vla.sft.loop import SupervisedSettings
from vla.sft.stage import TrainingStage, checkpointed_constant
from vla.text.sft_losses import Example, sequence_logprobs
from vla.threads import SINGLE_THREAD, Threads


@dataclass(frozen=True)
class Comparison:
    """Completions of one prompt from best to worst, as token ids.

    A completion that is not truncated ends with its stop token. `margin` is the difference of best
    and worst, if known; `target_margin` is the margin the loss demands. `key` decides the side of a
    split.
    """

    prompt: list[int]
    completions: tuple[list[int], ...]
    margin: float | None = None
    target_margin: float | None = None
    key: str = ""

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt with its longest completion."""
        return len(self.prompt) + max(map(len, self.completions))


@dataclass(frozen=True)
class BinaryExample:
    """A completion as token ids, liked or not (a thumb). `key` decides the side of a split."""

    prompt: list[int]
    completion: list[int]
    liked: bool
    key: str = ""

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt with the completion."""
        return len(self.prompt) + len(self.completion)


def encode_ranking(chat: ChatFormat, ranking: Ranking) -> Comparison:
    """Token ids of a ranking of a file.

    The ids that were drawn are used where the file holds them. Otherwise the chat template encodes
    the texts, with the end of the turn behind those that were not truncated.

    Raises:
        ValueError: the ids are those of another tokenizer, or best and worst get the same ids.
    """
    count = len(ranking.completions)
    finished = ranking.finished or (True,) * count
    if ranking.ids is None:
        completions = [
            chat.reply(ranking.prompt, text, ended)
            for text, ended in zip(ranking.completions, finished, strict=True)
        ]
    else:
        completions = [list(ids) for ids in ranking.ids]
        spelled = [
            chat.completion_text(ids) if max(ids) < len(chat.tokenizer) else None
            for ids in completions
        ]
        if spelled != list(ranking.completions):
            raise ValueError(
                "completion_ids do not spell completions with this model's tokenizer: "
                "leave the column out to learn the texts"
            )
    if completions[0] == completions[-1]:
        raise ValueError("best and worst become the same tokens, so nothing can be learned")
    return Comparison(
        chat.prompt(ranking.prompt),
        tuple(completions),
        ranking.margin,
        ranking.target_margin,
        ranking.key,
    )


def encode_feedback(chat: ChatFormat, feedback: BinaryFeedback) -> BinaryExample:
    """Token ids of a thumb of a file."""
    completion = chat.reply(feedback.prompt, feedback.completion)
    return BinaryExample(chat.prompt(feedback.prompt), completion, feedback.liked, feedback.key)


def to_binary_feedback(comparisons: Sequence[Comparison]) -> list[BinaryExample]:
    """The best completion of each comparison as liked, the worst as disliked."""
    return [
        BinaryExample(c.prompt, c.completions[i], i == 0, c.key)
        for c in comparisons
        for i in (0, -1)
    ]


def keep_best_and_worst(comparison: Comparison) -> Comparison:
    """The pair that losses on pairs use."""
    return replace(comparison, completions=(comparison.completions[0], comparison.completions[-1]))


def comparison_logprobs(
    policy: TextPolicy, comparisons: Sequence[Comparison]
) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """(summed log-probabilities, lengths in tokens, mask of present completions).

    Columns run from best to worst; absent completions have length 0. Every prompt is encoded once.
    """
    width = max(len(c.completions) for c in comparisons)
    rows = [(b, k) for b, c in enumerate(comparisons) for k in range(len(c.completions))]
    examples = [Example(comparisons[b].prompt, comparisons[b].completions[k]) for b, k in rows]
    logprobs = sequence_logprobs(policy, examples)
    # index_put scatters the flat rows into the [comparison, completion] grid and keeps the gradient
    at = tuple(torch.tensor(rows, device=logprobs.device).T)
    shape = (len(comparisons), width)
    grid = torch.zeros(shape, device=logprobs.device).index_put(at, logprobs)
    lengths = torch.zeros(shape, dtype=torch.long, device=logprobs.device)
    lengths[at] = torch.tensor(
        [len(example.completion) for example in examples], device=logprobs.device
    )
    return grid, lengths, lengths > 0


def fit_comparisons(
    policy: TextPolicy,
    comparisons: Sequence[Comparison],
    objective: Objective,
    settings: SupervisedSettings,
    seed: int,
    stage: TrainingStage | None = None,
) -> None:
    """Train the policy in place by a preference objective.

    The reference is the policy before training. Its log-probabilities are computed once, so only
    one model is in memory. KTO takes the best and worst completion of each comparison as thumbs.
    """
    if isinstance(objective, KTO):
        fit_kto(policy, to_binary_feedback(comparisons), objective, settings, seed, stage)
        return
    if not isinstance(objective, PlackettLuce):
        comparisons = [keep_best_and_worst(comparison) for comparison in comparisons]
    width = max(len(c.completions) for c in comparisons)
    margins = torch.tensor([c.target_margin or 0.0 for c in comparisons])
    reference = torch.zeros(len(comparisons), width)
    if needs_reference(objective):

        def score(rows: Sequence[int]) -> Tensor:
            values = comparison_logprobs(policy, [comparisons[i] for i in rows])[0]
            return torch.nn.functional.pad(values, (0, width - values.shape[1]))

        reference = checkpointed_constant(
            stage,
            "reference",
            lambda: evaluate_rows(len(comparisons), settings.rows_per_pass, score, policy.threads),
        )

    def batch_loss(rows: Sequence[int]) -> Tensor:
        logprobs, lengths, present = comparison_logprobs(policy, [comparisons[i] for i in rows])
        ref = reference[list(rows), : logprobs.shape[1]].to(logprobs.device)
        target = margins[list(rows)].to(logprobs.device)
        return comparison_terms(objective, logprobs, lengths, ref, present, target).sum()

    train_on_examples(
        policy, len(comparisons), batch_loss, settings, seed, stage, threads=policy.threads
    )


def fit_kto(
    policy: TextPolicy,
    examples: Sequence[BinaryExample],
    objective: KTO,
    settings: SupervisedSettings,
    seed: int,
    stage: TrainingStage | None = None,
) -> None:
    """Train the policy in place by KTO on thumbs.

    The baseline of a batch pairs each prompt with a completion of another prompt
    (`mismatched_prompts`). The pairing is fixed, so the reference's log-probabilities are computed
    once.

    Raises:
        ValueError: all prompts are the same, or `balance` is set and all thumbs are of one kind.
    """
    num_liked = sum(example.liked for example in examples)
    liked_weight = 1.0
    disliked_weight = 1.0
    if objective.balance:
        liked_weight, disliked_weight = balanced_weights(num_liked, len(examples) - num_liked)
    matched = [Example(e.prompt, e.completion) for e in examples]
    partners = mismatched_prompts([tuple(example.prompt) for example in examples])
    mismatched = [
        Example(e.prompt, examples[i].completion) for e, i in zip(examples, partners, strict=True)
    ]
    baseline = torch.zeros(())

    def score(pairs: list[Example], rows: Sequence[int]) -> Tensor:
        def score_part(part: Sequence[int]) -> Tensor:
            return sequence_logprobs(policy, [pairs[rows[i]] for i in part])

        return evaluate_rows(len(rows), settings.rows_per_pass, score_part, policy.threads)

    all_rows = range(len(examples))
    ref_matched = checkpointed_constant(stage, "reference", lambda: score(matched, all_rows))
    ref_mismatched = checkpointed_constant(
        stage, "reference of others", lambda: score(mismatched, all_rows)
    )

    def update_baseline(rows: Sequence[int]) -> None:
        nonlocal baseline  # of the whole batch, before it is cut into micro-batches
        baseline = kto_baseline(score(mismatched, rows), ref_mismatched[list(rows)])

    def batch_loss(rows: Sequence[int]) -> Tensor:
        logprobs = sequence_logprobs(policy, [matched[i] for i in rows])
        device = logprobs.device
        liked = torch.tensor([examples[i].liked for i in rows], device=device)
        ref = ref_matched[list(rows)].to(device)
        terms = kto_terms(
            logprobs,
            ref,
            liked,
            baseline.to(device),
            objective.beta,
            liked_weight,
            disliked_weight,
        )
        return terms.sum()

    train_on_examples(
        policy,
        len(examples),
        batch_loss,
        settings,
        seed,
        stage,
        before_batch=update_baseline,
        threads=policy.threads,
    )


def held_out_reference(
    policy: TextPolicy,
    held_out: Sequence[Comparison],
    objective: Objective,
    settings: SupervisedSettings,
    stage: TrainingStage,
) -> Tensor | None:
    """Log-probabilities of the held-out completions before training; None without a reference."""
    if not held_out or not needs_reference(objective):
        return None
    width = max(len(comparison.completions) for comparison in held_out)

    def score(rows: Sequence[int]) -> Tensor:
        logprobs = comparison_logprobs(policy, [held_out[i] for i in rows])[0]
        return torch.nn.functional.pad(logprobs, (0, width - logprobs.shape[1]))

    return checkpointed_constant(
        stage,
        "held-out reference",
        lambda: evaluate_rows(len(held_out), settings.rows_per_pass, score),
    )


@torch.no_grad()
def preference_accuracy(
    policy: TextPolicy,
    comparisons: Sequence[Comparison],
    reference: Float[Tensor, "B K"] | None,
    batch_size: int,
) -> float:
    """Share of comparisons whose best completion has a higher implicit reward than the worst.

    The implicit reward is log pi - log ref. Without a reference, the mean log-probability per token
    takes its place.
    """
    num_correct = 0
    for start in range(0, len(comparisons), batch_size):
        part = comparisons[start : start + batch_size]
        logprobs, lengths, present = comparison_logprobs(policy, part)
        if reference is None:
            values = logprobs / lengths.clamp(min=1)
        else:
            values = logprobs - reference[start : start + batch_size, : logprobs.shape[1]].to(
                logprobs.device
            )
        last = present.sum(1, keepdim=True) - 1
        num_correct += int((values[:, 0] > values.gather(1, last).squeeze(1)).sum())
    return num_correct / len(comparisons)


def ranking_rewards(
    model: RewardModel, comparisons: Sequence[Comparison]
) -> tuple[Float[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """(rewards, mask of present completions), columns from best to worst.

    Every prompt is encoded once.
    """
    pairs = [(c.prompt, completion) for c in comparisons for completion in c.completions]
    rewards = completion_rewards(
        model, [prompt for prompt, _ in pairs], [completion for _, completion in pairs]
    )
    sizes = torch.tensor([len(c.completions) for c in comparisons], device=rewards.device)
    present = torch.arange(int(sizes.max()), device=rewards.device) < sizes[:, None]
    return rewards.new_zeros(present.shape).masked_scatter(present, rewards), present


def completion_rewards(
    model: RewardModel, prompts: Sequence[list[int]], completions: Sequence[list[int]]
) -> Float[Tensor, "B"]:
    """Rewards of completions by the reward model; prompts and completions are token ids."""
    device = next(model.parameters()).device
    observation = observe_prompts(prompts, max(map(len, prompts)), model.pad_id, device)
    following = observe_prompts(completions, max(map(len, completions)), model.pad_id, device)
    return model(observation.tokens, observation.token_mask, following.tokens, following.token_mask)


def fit_reward_model(
    model: RewardModel,
    comparisons: Sequence[Comparison],
    settings: SupervisedSettings,
    head_learning_rate: float,
    reward_centering_weight: float,
    seed: int,
    stage: TrainingStage | None = None,
    threads: Threads = SINGLE_THREAD,
) -> None:
    """Train a reward model in place by Bradley-Terry on all pairs of every ranking.

    A ranking's `target_margin` applies to all its pairs. The new head has its own learning rate.
    """

    def batch_loss(rows: Sequence[int]) -> Tensor:
        rewards, present = ranking_rewards(model, [comparisons[i] for i in rows])
        margins = rewards.new_tensor([comparisons[i].target_margin or 0.0 for i in rows])
        return pairwise_terms(rewards, present, reward_centering_weight, margins).sum()

    train_on_examples(
        model,
        len(comparisons),
        batch_loss,
        settings,
        seed,
        stage,
        threads=threads,
        learning_rates={"head": head_learning_rate},
    )


@torch.no_grad()
def reward_accuracy(
    model: RewardModel, comparisons: Sequence[Comparison], batch_size: int
) -> tuple[int, int]:
    """(number of pairs that the reward model orders correctly, number of all pairs)."""
    num_correct = 0
    num_pairs = 0
    for start in range(0, len(comparisons), batch_size):
        better, worse, counts = ranked_pairs(
            *ranking_rewards(model, comparisons[start : start + batch_size])
        )
        num_correct += int(((better > worse) & counts).sum())
        num_pairs += int(counts.sum())
    return num_correct, num_pairs
