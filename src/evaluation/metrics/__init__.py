"""The metrics of vision-language models by group of tasks; ``docs/metrics.md`` defines each.

A record without a usable answer is wrong: what a metric is of is all questions, or all true boxes.
"""

from src.evaluation.metrics.answers import judged, score_answers
from src.evaluation.metrics.base import Scored
from src.evaluation.metrics.captions import score_captions
from src.evaluation.metrics.grounding import Grounded, score_grounding

__all__ = ["Grounded", "Scored", "judged", "score_answers", "score_captions", "score_grounding"]
