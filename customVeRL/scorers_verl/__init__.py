"""GRPO with the rewards of ScoreRS on verl's own trainer: its extension points, filled in.

Installed from its folder in the project (``pip install -e .``), it finds the project's package ``src`` two folders up,
if that is not installed itself; so every process of verl that loads a class of this package has both.
"""

import importlib.util
import sys
from pathlib import Path

_PROJECT = Path(__file__).resolve().parents[2]

if importlib.util.find_spec("src") is None:
    if not (_PROJECT / "src" / "rewards").is_dir():
        raise ImportError(f"scorers_verl needs the package src of ScoreRS: pip install --no-deps -e {_PROJECT}")
    sys.path.append(str(_PROJECT))
