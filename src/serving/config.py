"""Keys of the reward server: defaults < YAML file < environment variables."""

import ipaddress
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from omegaconf import OmegaConf

from src.config import flatten_keys, load_config
from src.curation.scorer import ScorerConfig
from src.errors import JobError

PREFIX = "REWARD_SERVER_"
CONFIG = f"{PREFIX}CONFIG"


@dataclass
class LimitsConfig:
    """What one request may hold."""

    max_body_bytes: int = 2**25
    body_seconds: float = 20.0
    max_images: int = 8
    max_texts: int = 64
    max_text_chars: int = 20_000
    max_tokens: int = 65_536
    max_pixels: int = 25_000_000


@dataclass
class QueueConfig:
    """How much may wait, and how long."""

    max_pairs: int = 2048
    max_bytes: int = 2**30
    wait_ms: float = 5.0
    request_seconds: float = 60.0
    cache_bytes: int = 2**29


@dataclass
class ServerConfig:
    """Keys of config/reward_server.yaml, where each is explained."""

    model: ScorerConfig = field(default_factory=ScorerConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    queue: QueueConfig = field(default_factory=QueueConfig)
    api_key: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    connections: int = 1000

    def __post_init__(self) -> None:
        for part in (self.limits, self.queue):
            for name, value in vars(part).items():
                if value < 0 or (value == 0 and name not in ("wait_ms", "cache_bytes")):
                    raise JobError(f"{name} is {value}; it must be above 0")
        if self.connections < 1:
            raise JobError(f"connections is {self.connections}; it must be above 0")
        if self.limits.max_texts > self.queue.max_pairs:
            raise JobError(f"queue.max_pairs is {self.queue.max_pairs}, below limits.max_texts {self.limits.max_texts}")
        if self.limits.max_body_bytes > self.queue.max_bytes:
            raise JobError(f"queue.max_bytes is {self.queue.max_bytes}, below limits.max_body_bytes")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise JobError("api_key must be printable ASCII characters, or null for none")


def config_from_environment(environment: Mapping[str, str] = os.environ) -> ServerConfig:
    """The server's keys: a YAML file named by ``REWARD_SERVER_CONFIG``, if any, and over it the other variables.

    Raises:
        JobError: a wrong value, or a variable that is no key.
    """
    return load_config(ServerConfig, environment.get(CONFIG), environment_overrides(environment))


def environment_overrides(environment: Mapping[str, str] = os.environ) -> list[str]:
    """``key=value`` for every variable ``REWARD_SERVER_<KEY>``; dots of a key are ``_``, all in capitals
    (``REWARD_SERVER_MODEL_PATH`` is ``model.path``). Texts and the key to the server are taken as they are: no
    quotes, ``null`` or ``${...}`` in them mean anything.

    Raises:
        JobError: a variable of that prefix that is no key.
    """
    defaults = flatten_keys(OmegaConf.structured(ServerConfig))
    keys = {PREFIX + key.upper().replace(".", "_"): key for key in defaults}
    given = {name: value for name, value in environment.items() if name.startswith(PREFIX) and name != CONFIG}
    if unknown := sorted(set(given) - set(keys)):
        raise JobError(f"unknown variable {unknown[0]}; known: {', '.join([CONFIG, *keys])}")
    texts = {name for name, key in keys.items() if key == "api_key" or isinstance(defaults[key], str)}
    return [f"{keys[name]}={_quoted(value) if name in texts else value}" for name, value in given.items()]


def is_address(host: str) -> bool:
    """Whether it is an IP address, not a name or a socket's path."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    return ipaddress.ip_address(host).is_loopback if is_address(host) else host == "localhost"


def _quoted(text: str) -> str:
    """The text as YAML that means just it, with what OmegaConf would fill in escaped."""
    return json.dumps(re.sub(r"(\\*)\$\{", r"\1\1\\${", text))
