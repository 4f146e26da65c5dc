"""BLEU, ROUGE-L and CIDEr by ``pycocoevalcap``, METEOR by NLTK, on words that are cut without Java.

The reference implementations start a Java program to cut words and to compute METEOR. Here words are runs of letters
and digits (with hyphens and apostrophes inside) in lower case, and METEOR matches equal words and equal stems, without
the synonyms of WordNet: figures are comparable with each other, and near, not equal, to those of the COCO server.
"""

import contextlib
import io
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from nltk.stem.porter import PorterStemmer
from nltk.translate.meteor_score import single_meteor_score
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider_scorer import CiderScorer
from pycocoevalcap.rouge.rouge import Rouge

from src.evaluation.metrics.base import Scored, nothing, ratio
from src.evaluation.results import Metric, resampled_sums, with_interval
from src.rewards.answers import final_answer

NAMES = ("bleu1", "bleu2", "bleu3", "bleu4", "meteor_stem", "rouge_l", "cider")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_TINY, _SMALL = 1e-15, 1e-9  # as in the scorer


class _NoSynonyms:
    """In the place of WordNet."""

    @staticmethod
    def synsets(word: str) -> list[Any]:  # noqa: ARG004
        return []


def words(text: str) -> list[str]:
    """The words that captions are compared by.

    >>> words("Two semi-detached houses, side by side.")
    ['two', 'semi-detached', 'houses', 'side', 'by', 'side']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def score_captions(references: Sequence[Sequence[str]], texts: Sequence[str | None]) -> Scored:
    """Score captions, each against all its references; one that is missing or empty gets 0.

    Returns:
        Metrics ``NAMES``; CIDEr is in 0..10, all others in 0..1. BLEU is that of the corpus, the others are means.
        A row has the values of its caption (BLEU apart), and ``unparsed`` where it is empty.
    """
    said = [words(final_answer(text)) for text in texts]
    true = [[words(reference) for reference in of] for of in references]
    usable = [bool(of) and any(of) for of in true]
    if not any(usable):
        return Scored({name: nothing() for name in NAMES}, {"unparsed": sum(not one for one in said)}, {},
                      [{"unparsed": not one} for one in said])  # fmt: skip
    bleu, cider = BleuScorer(n=4), CiderScorer(n=4)
    values: list[dict[str, Any]] = [{"unparsed": not one} for one in said]
    scored = [k for k, fine in enumerate(usable) if fine]
    stemmer = PorterStemmer()
    for k in scored:
        of = [" ".join(one) for one in true[k] if one]
        hypothesis = " ".join(said[k])
        bleu += (hypothesis, of)
        cider += (hypothesis, of)
        values[k]["rouge_l"] = float(Rouge().calc_score([hypothesis], of)) if said[k] else 0.0
        values[k]["meteor_stem"] = max(
            float(single_meteor_score(one, said[k], stemmer=stemmer, wordnet=_NoSynonyms)) for one in true[k] if one
        ) if said[k] else 0.0  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        _, each = cider.compute_score()
    for k, value in zip(scored, each, strict=True):
        values[k]["cider"] = float(value)
    metrics = dict(zip(NAMES[:4], _bleu(bleu), strict=True))
    for name in NAMES[4:]:
        # A record without a usable reference, as one without an image, is among those that a mean is of.
        metrics[name] = ratio([row.get(name, 0.0) for row in values])
    return Scored(metrics, {"unparsed": sum(not one for one in said)}, {}, values)


def _bleu(scorer: BleuScorer) -> list[Metric]:
    """BLEU-1 to 4 of the corpus, with intervals from captions drawn again."""
    sums = np.array([[c["testlen"], _closest(c), *c["correct"], *c["guess"]] for c in scorer.ctest], dtype=np.float64)
    value, drawn = _bleu_of(sums.sum(axis=0)[None])[0], _bleu_of(resampled_sums(sums))
    return [with_interval(float(value[n]), len(sums), drawn[:, n]) for n in range(4)]


def _closest(comps: dict[str, Any]) -> float:
    length = comps["testlen"]
    return min((abs(one - length), one) for one in comps["reflen"])[1]


def _bleu_of(sums: np.ndarray) -> np.ndarray:
    """Sums over captions (draws, 10) to BLEU (draws, 4), by the scorer's own formula."""
    said, wanted = sums[:, :1], sums[:, 1:2]
    precision = (sums[:, 2:6] + _TINY) / (sums[:, 6:10] + _SMALL)
    ratio_of_lengths = (said + _TINY) / (wanted + _SMALL)
    brevity = np.where(ratio_of_lengths < 1, np.exp(1 - 1 / ratio_of_lengths), 1.0)
    return np.exp(np.log(precision).cumsum(axis=1) / np.arange(1, 5)) * brevity
