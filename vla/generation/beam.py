"""Beam search over completions, with one prefill of the prompts and shared cache rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from vla.finite_checks import check_distribution
from vla.generation.generate import advance, prefill, select_rows
from vla.generation.hf_decoder import output_head


@dataclass(frozen=True)
class Hypothesis:
    """A completion with its summed log-probability in nats; `score` is that divided by length **
    length_penalty."""

    tokens: tuple[int, ...]
    logprob: float
    score: float


@torch.no_grad()
def beam_search(
    model: nn.Module,
    tokens: Int[Tensor, "B n"],
    mask: Bool[Tensor, "B n"],
    num_beams: int,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    length_penalty: float = 1.0,
) -> list[list[Hypothesis]]:
    """The best `num_beams` completions of every right-padded prompt, best first.

    A completion ends with a stop token or after `max_new_tokens`. A prompt is finished when no open
    beam can still beat its worst finished completion.

    Raises:
        ValueError: fewer than one beam.
    """
    if num_beams < 1:
        raise ValueError(f"num_beams ({num_beams}) must be at least 1")
    count = len(tokens)
    stops = frozenset(stop_ids)
    first = torch.arange(count, device=tokens.device).repeat_interleave(num_beams)
    prefix = select_rows(prefill(model, tokens, mask, max_new_tokens), first)
    totals = torch.full((count, num_beams), -torch.inf, device=tokens.device)
    totals[:, 0] = 0.0
    written: list[list[tuple[int, ...]]] = [[()] * num_beams for _ in range(count)]
    finished: list[list[Hypothesis]] = [[] for _ in range(count)]
    for step in range(1, max_new_tokens + 1):
        logprobs = output_head(model)(prefix.hidden).float().log_softmax(-1)
        check_distribution(logprobs)
        vocabulary = logprobs.shape[1]
        sums = (totals[:, :, None] + logprobs.view(count, num_beams, -1)).flatten(1)
        best, places = sums.topk(min(2 * num_beams, sums.shape[1]), dim=1)
        rows = []
        drawn = []
        for b in range(count):
            # Twice as many candidates as beams: up to `num_beams` of them may stop here.
            extended = _extend(
                best[b].tolist(),
                places[b].tolist(),
                vocabulary,
                written[b],
                finished[b],
                stops,
                num_beams,
            )
            extended += [(0, next(iter(stops)), -torch.inf)] * (num_beams - len(extended))
            written[b] = [(*written[b][beam], token) for beam, token, _ in extended]
            totals[b] = torch.tensor([total for _, _, total in extended])
            rows += [b * num_beams + beam for beam, _, _ in extended]
            drawn += [token for _, token, _ in extended]
            finished[b] = _best(finished[b], num_beams, length_penalty)
        if step == max_new_tokens or all(
            _is_done(finished[b], float(totals[b].max()), num_beams, length_penalty, max_new_tokens)
            for b in range(count)
        ):
            break
        prefix = advance(
            model,
            select_rows(prefix, torch.tensor(rows, device=tokens.device)),
            torch.tensor(drawn, device=tokens.device),
        )
    return [
        _with_open(finished[b], written[b], totals[b].tolist(), num_beams, length_penalty)
        for b in range(count)
    ]


def _extend(
    best: list[float],
    places: list[int],
    vocabulary: int,
    written: list[tuple[int, ...]],
    finished: list[Hypothesis],
    stops: frozenset[int],
    num_beams: int,
) -> list[tuple[int, int, float]]:
    """(beam, token, total) of the beams that continue.

    Candidates with a stop token join `finished` if they rank among the best `num_beams`.
    """
    continuing: list[tuple[int, int, float]] = []
    for rank, (total, place) in enumerate(zip(best, places, strict=True)):
        beam, token = divmod(place, vocabulary)
        if total == -torch.inf:
            break
        if token in stops:
            if rank < num_beams:
                finished.append(Hypothesis((*written[beam], token), total, 0.0))
        elif len(continuing) < num_beams:
            continuing.append((beam, token, total))
    return continuing


def _best(hypotheses: list[Hypothesis], num_beams: int, length_penalty: float) -> list[Hypothesis]:
    scored = [
        Hypothesis(h.tokens, h.logprob, h.logprob / len(h.tokens) ** length_penalty)
        for h in hypotheses
    ]
    return sorted(scored, key=lambda h: -h.score)[:num_beams]


def _is_done(
    finished: list[Hypothesis],
    best_open: float,
    num_beams: int,
    length_penalty: float,
    max_length: int,
) -> bool:
    """True if no open beam can beat the worst finished hypothesis.

    A log-probability only falls, and a length ends at the limit.
    """
    if best_open == -torch.inf:
        return True
    return len(finished) == num_beams and finished[-1].score >= best_open / max_length ** max(
        length_penalty, 0.0
    )


def _with_open(
    finished: list[Hypothesis],
    written: list[tuple[int, ...]],
    totals: list[float],
    num_beams: int,
    length_penalty: float,
) -> list[Hypothesis]:
    """The best of the finished completions and of those cut at the limit."""
    truncated = [
        Hypothesis(tokens, total, 0.0)
        for tokens, total in zip(written, totals, strict=True)
        if total > -torch.inf
    ]
    return _best([*finished, *truncated], num_beams, length_penalty)
