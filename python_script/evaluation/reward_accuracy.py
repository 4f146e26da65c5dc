"""Measure a score model on preference data, with the controls that catch shortcuts.

    python python_script/evaluation/reward_accuracy.py data.target_root=output/preferences/scenes.parquet

Prints accuracy by kind of wrong answer and by source, and writes ``reward_accuracy.json`` and ``reward_accuracy.html``.
"""

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

from src.config import MISSING, run_program
from src.curation.scorer import NANO, Scorer
from src.dataset.preference import find_sets
from src.dataset.preference_cache import counts_table, load_preferences
from src.errors import JobError
from src.evaluation.reward_accuracy import Control, by, longer_wins, score_pairs, summary, words_win
from src.evaluation.reward_page import write_page
from src.training.reward import encode_group

ROOT = Path(__file__).resolve().parents[2]
MODEL_CONTROLS = get_args(Control)[1:]
CONTROLS = (*MODEL_CONTROLS, "longer_wins", "words_win")


@dataclass
class Model:
    path: str = NANO
    device: str = "auto"
    dtype: str = "auto"
    position_scheme: str = "auto"


@dataclass
class Data:
    target_root: str = MISSING
    image_root: str | None = None
    cache_dir: str = "output/preference_cache"
    limit: int = 0


@dataclass
class AccuracyConfig:
    output_dir: str = "output/reward_accuracy"
    controls: list[str] = field(default_factory=lambda: list(CONTROLS))
    seed: int = 0
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)


def main(config: AccuracyConfig) -> None:
    if unknown := set(config.controls) - set(CONTROLS):
        raise JobError(f"controls: no control {', '.join(sorted(unknown))}; there are {', '.join(CONTROLS)}")
    scorer = Scorer.from_pretrained(
        config.model.path, config.model.device, config.model.dtype, position_scheme=config.model.position_scheme
    )
    groups, counts = load_preferences(
        find_sets(config.data.target_root, config.data.image_root),
        Path(config.data.cache_dir),
        lambda item: encode_group(scorer.encoder, vars(item)) and None,
        f"score {scorer.encoder.max_tokens} {scorer.encoder.processor.image_processor.to_json_string()}",
    )
    print(counts_table(counts))
    if 0 < config.data.limit < len(groups):
        groups = groups.shuffle(seed=config.seed).select(range(config.data.limit))
        print(f"a draw of {len(groups)} groups")
    pairs = score_pairs(scorer, groups)
    result: dict[str, Any] = {"model": config.model.path, "data": config.data.target_root, **_measures(pairs)}
    result["controls"] = {}
    others: dict[str, Any] = {"longer_wins": longer_wins, "words_win": partial(words_win, seed=config.seed)}
    for control in config.controls:
        if control in MODEL_CONTROLS:
            scored = score_pairs(scorer, groups, control, config.seed)  # type: ignore[arg-type]
        else:
            scored = others[control](groups, pairs)
        result["controls"][control] = _measures(scored)
    print(_table(result, "by_kind"), _table(result, "by_source"), sep="\n\n")
    out = Path(config.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    (out / "reward_accuracy.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    write_page(result, out / "reward_accuracy.html")
    print(f"\n{out / 'reward_accuracy.json'}\n{out / 'reward_accuracy.html'}")


def _measures(pairs: Any) -> dict[str, Any]:
    return {"overall": summary(pairs), "by_kind": by(pairs, "kind"), "by_source": by(pairs, "source")}


def _table(result: dict[str, Any], what: str) -> str:
    """Lines of text: pairs, accuracy with its interval, AUC, and the accuracy of each control."""
    rows = {**result[what], "all": result["overall"]}
    width = max(map(len, rows))
    lines = [
        f"{what[3:]:<{width}}   pairs  accuracy  95 %           auc" + "".join(f"  {c}" for c in result["controls"])
    ]
    for name, row in rows.items():
        interval = f"{row['low']:>6.1%}-{row['high']:<6.1%}"
        line = f"{name:<{width}}  {row['pairs']:>6}  {row['accuracy']:>8.1%}  {interval} {row['auc']:.3f}"
        for control, measured in result["controls"].items():
            own = measured["overall"] if name == "all" else measured[what][name]
            line += f"  {own['accuracy']:>{len(control)}.1%}"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(main, AccuracyConfig, ROOT / "config" / "reward_accuracy.yaml")
