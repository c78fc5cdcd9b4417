"""Text metrics against references, in [0, 1]: BLEU and chrF by sacrebleu, ROUGE by rouge-score.

`facts["references"]` may hold several references; the answer is the only one otherwise.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from vla.rewards.sample import Sample, fact_texts

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer


def bleu(sample: Sample) -> float:
    """Sentence BLEU (Papineni et al. 2002) with exponential smoothing and effective order."""
    from sacrebleu import sentence_bleu

    return sentence_bleu(sample.completion, list(fact_texts(sample, "references"))).score / 100


def chrf(sample: Sample) -> float:
    """chrF2 (Popovic 2015): F-score of character n-grams up to 6, recall counted twice."""
    from sacrebleu import sentence_chrf

    return sentence_chrf(sample.completion, list(fact_texts(sample, "references"))).score / 100


def rouge_l(sample: Sample) -> float:
    """ROUGE-L F-score (Lin 2004): longest common subsequence of words, maximum over references."""
    scores = [
        _rouge().score(reference, sample.completion)["rougeL"].fmeasure
        for reference in list(fact_texts(sample, "references"))
    ]
    return max(scores)


@cache
def _rouge() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"])
