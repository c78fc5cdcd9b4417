"""Training a policy, or a reward model, on comparisons and thumbs of token ids."""

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
    """Completions of one prompt from best to worst, as token ids; one that was not cut ends with
    its stop token. `margin`: None or how much best and worst differ; `target_margin`: what the loss
    asks for; `key`: what decides on which side of a split it falls.
    """

    prompt: list[int]
    completions: tuple[list[int], ...]
    margin: float | None = None
    target_margin: float | None = None
    key: str = ""


@dataclass(frozen=True)
class BinaryExample:
    """A completion as token ids, liked or not. `key`: what decides on which side of a split it
    falls."""

    prompt: list[int]
    completion: list[int]
    liked: bool
    key: str = ""


def encode_ranking(chat: ChatFormat, ranking: Ranking) -> Comparison:
    """Token ids of a ranking read from a file: those that were drawn where it holds them, else its
    texts as the chat template writes them, with the end of the turn behind those that were not cut.

    Raises ValueError where the ids are those of another tokenizer, and where best and worst become
    the same ids.
    """
    count = len(ranking.completions)
    finished = ranking.finished or (True,) * count
    if ranking.ids is None:
        said = [
            chat.reply(ranking.prompt, text, ended)
            for text, ended in zip(ranking.completions, finished, strict=True)
        ]
    else:
        said = [list(ids) for ids in ranking.ids]
        spelled = [
            chat.completion_text(ids) if max(ids) < len(chat.tokenizer) else None for ids in said
        ]
        if spelled != list(ranking.completions):
            raise ValueError(
                "completion_ids do not spell completions with this model's tokenizer: leave the column out to learn the"
                " texts"
            )
    if said[0] == said[-1]:
        raise ValueError("best and worst become the same tokens, so the row says nothing")
    prompt, target = chat.prompt(ranking.prompt), ranking.target_margin
    return Comparison(prompt, tuple(said), ranking.margin, target, ranking.key)


def encode_feedback(chat: ChatFormat, thumb: BinaryFeedback) -> BinaryExample:
    """Token ids of a thumb read from a file."""
    said = chat.reply(thumb.prompt, thumb.completion)
    return BinaryExample(chat.prompt(thumb.prompt), said, thumb.liked, thumb.key)


def to_binary_feedback(comparisons: Sequence[Comparison]) -> list[BinaryExample]:
    """The best of each comparison liked, the worst disliked."""
    return [
        BinaryExample(c.prompt, c.completions[i], i == 0, c.key)
        for c in comparisons
        for i in (0, -1)
    ]


def keep_best_and_worst(comparison: Comparison) -> Comparison:
    """All that a loss on pairs looks at."""
    return replace(comparison, completions=(comparison.completions[0], comparison.completions[-1]))


def comparison_logprobs(
    policy: TextPolicy, comparisons: Sequence[Comparison]
) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """(summed log-probabilities, lengths, which are present), columns from best to worst; every
    prompt is read once."""
    width = max(len(c.completions) for c in comparisons)
    rows = [(b, k) for b, c in enumerate(comparisons) for k in range(len(c.completions))]
    examples = [Example(comparisons[b].prompt, comparisons[b].completions[k]) for b, k in rows]
    logprobs = sequence_logprobs(policy, examples)
    at = tuple(torch.tensor(rows, device=logprobs.device).T)
    shape = (len(comparisons), width)
    spread = torch.zeros(shape, device=logprobs.device).index_put(at, logprobs)
    lengths = torch.zeros(shape, dtype=torch.long, device=logprobs.device)
    lengths[at] = torch.tensor(
        [len(example.completion) for example in examples], device=logprobs.device
    )
    return spread, lengths, lengths > 0


def fit_comparisons(
    policy: TextPolicy,
    comparisons: Sequence[Comparison],
    objective: Objective,
    settings: SupervisedSettings,
    seed: int,
    stage: TrainingStage | None = None,
) -> None:
    """Move the policy towards what was preferred. The reference is the policy as it comes in: its
    log-probabilities are computed once and kept, so one model is in memory.
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

        def scored(rows: Sequence[int]) -> Tensor:
            values = comparison_logprobs(policy, [comparisons[i] for i in rows])[0]
            return torch.nn.functional.pad(values, (0, width - values.shape[1]))

        reference = checkpointed_constant(
            stage,
            "reference",
            lambda: evaluate_rows(len(comparisons), settings.rows_per_pass, scored, policy.threads),
        )

    def loss_of(rows: Sequence[int]) -> Tensor:
        logprobs, lengths, present = comparison_logprobs(policy, [comparisons[i] for i in rows])
        ref = reference[list(rows), : logprobs.shape[1]].to(logprobs.device)
        asked = margins[list(rows)].to(logprobs.device)
        return comparison_terms(objective, logprobs, lengths, ref, present, asked).sum()

    train_on_examples(
        policy, len(comparisons), loss_of, settings, seed, stage, threads=policy.threads
    )


def fit_kto(
    policy: TextPolicy,
    examples: Sequence[BinaryExample],
    objective: KTO,
    settings: SupervisedSettings,
    seed: int,
    stage: TrainingStage | None = None,
) -> None:
    """KTO. The baseline of a batch comes from its prompts with the completion of the next other
    prompt behind them; which one that is is fixed, so the reference's log-probabilities are
    computed once.

    Raises ValueError where all prompts are the same.
    """
    num_liked = sum(example.liked for example in examples)
    weights = (
        balanced_weights(num_liked, len(examples) - num_liked) if objective.balance else (1.0, 1.0)
    )
    own = [Example(e.prompt, e.completion) for e in examples]
    others = mismatched_prompts([tuple(example.prompt) for example in examples])
    other = [
        Example(e.prompt, examples[i].completion) for e, i in zip(examples, others, strict=True)
    ]
    size, baseline = settings.rows_per_pass, [torch.zeros(())]

    def scores(of: list[Example], rows: Sequence[int]) -> Tensor:
        def said(part: Sequence[int]) -> Tensor:
            return sequence_logprobs(policy, [of[rows[i]] for i in part])

        return evaluate_rows(len(rows), size, said, policy.threads)

    everyone = range(len(examples))
    ref_own = checkpointed_constant(stage, "reference", lambda: scores(own, everyone))
    ref_other = checkpointed_constant(stage, "reference of others", lambda: scores(other, everyone))

    def before_batch(rows: Sequence[int]) -> None:
        baseline[0] = kto_baseline(scores(other, rows), ref_other[list(rows)])

    def loss_of(rows: Sequence[int]) -> Tensor:
        logprobs = sequence_logprobs(policy, [own[i] for i in rows])
        device = logprobs.device
        liked = torch.tensor([examples[i].liked for i in rows], device=device)
        ref, z = ref_own[list(rows)].to(device), baseline[0].to(device)
        return kto_terms(logprobs, ref, liked, z, objective.beta, *weights).sum()

    train_on_examples(
        policy,
        len(examples),
        loss_of,
        settings,
        seed,
        stage,
        before_batch=before_batch,
        threads=policy.threads,
    )


def held_out_reference(
    policy: TextPolicy,
    held_out: Sequence[Comparison],
    objective: Objective,
    settings: SupervisedSettings,
    stage: TrainingStage,
) -> Tensor | None:
    """Log-probabilities of the held-out completions before the fit, where the objective has a
    reference."""
    if not held_out or not needs_reference(objective):
        return None
    width = max(len(comparison.completions) for comparison in held_out)

    def scored(rows: Sequence[int]) -> Tensor:
        logprobs = comparison_logprobs(policy, [held_out[i] for i in rows])[0]
        return torch.nn.functional.pad(logprobs, (0, width - logprobs.shape[1]))

    return checkpointed_constant(
        stage,
        "held-out reference",
        lambda: evaluate_rows(len(held_out), settings.rows_per_pass, scored),
    )


@torch.no_grad()
def preference_accuracy(
    policy: TextPolicy,
    comparisons: Sequence[Comparison],
    reference: Float[Tensor, "B K"] | None,
    batch_size: int,
) -> float:
    """Share of comparisons whose best completion has the higher implicit reward (log pi - log ref)
    than the worst.

    Without a reference, the higher mean log-probability per token.
    """
    right = 0
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
        right += int((values[:, 0] > values.gather(1, last).squeeze(1)).sum())
    return right / len(comparisons)


def ranking_rewards(
    model: RewardModel, comparisons: Sequence[Comparison]
) -> tuple[Float[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """(the reward model's rewards, which are present), columns from best to worst; every prompt is
    read once."""
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
    """The reward model's rewards of completions, token ids."""
    device = next(model.parameters()).device
    observation = observe_prompts(prompts, max(map(len, prompts)), model.pad_id, device)
    behind = observe_prompts(completions, max(map(len, completions)), model.pad_id, device)
    return model(observation.tokens, observation.token_mask, behind.tokens, behind.token_mask)


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
    """Bradley-Terry on all pairs of every ranking, by the margin that it asks for. The head is new
    and has a rate of its own.
    """

    def loss_of(rows: Sequence[int]) -> Tensor:
        rewards, present = ranking_rewards(model, [comparisons[i] for i in rows])
        margins = rewards.new_tensor([comparisons[i].target_margin or 0.0 for i in rows])
        return pairwise_terms(rewards, present, reward_centering_weight, margins).sum()

    train_on_examples(
        model,
        len(comparisons),
        loss_of,
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
    """(pairs that the reward model orders right, pairs), of all pairs of the rankings."""
    right = total = 0
    for start in range(0, len(comparisons), batch_size):
        better, worse, counts = ranked_pairs(
            *ranking_rewards(model, comparisons[start : start + batch_size])
        )
        right += int(((better > worse) & counts).sum())
        total += int(counts.sum())
    return right, total
