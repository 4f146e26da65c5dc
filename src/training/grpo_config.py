"""Every key of reinforcement learning beside those of any run and of the model and its data."""

from dataclasses import dataclass, field

from src.training.run import RunConfig
from src.training.vlm_config import Answering, Data, Model


@dataclass
class Rollout:
    num_generations: int = 8
    max_new_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass
class Policy:
    kl_coef: float = 0.0
    clip_low: float = 0.2
    clip_high: float = 0.2


@dataclass
class Rewards:
    format_weight: float = 0.3
    by_kind: dict[str, str] = field(default_factory=dict)
    default: str = "em"
    server_url: str | None = None
    api_key: str | None = None
    tries: int = 15
    deadline: float = 600.0


@dataclass
class GrpoConfig(RunConfig):
    run_name: str = "grpo"
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    rollout: Rollout = field(default_factory=Rollout)
    policy: Policy = field(default_factory=Policy)
    reward: Rewards = field(default_factory=Rewards)
    evaluation: Answering = field(default_factory=Answering)
