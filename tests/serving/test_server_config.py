"""Keys of the server come from the environment and a YAML file; what is wrong is named."""

import pytest

from src.errors import JobError
from src.serving.config import ServerConfig, config_from_environment


def test_variables_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "server.yaml"
    path.write_text("model: {path: other, token_budget: 100}\nlimits: {max_texts: 7}\n")
    environment = {
        "REWARD_SERVER_CONFIG": str(path),
        "REWARD_SERVER_MODEL_PATH": "007",
        "REWARD_SERVER_LIMITS_MAX_BODY_BYTES": "1000",
        "REWARD_SERVER_API_KEY": "123456",
        "REWARD_MODEL_PATH": "of another program",
    }
    config = config_from_environment(environment)
    assert (config.model.path, config.model.token_budget, config.limits.max_texts) == ("007", 100, 7)
    assert (config.limits.max_body_bytes, config.api_key, config.host) == (1000, "123456", "127.0.0.1")
    assert config_from_environment({}) == ServerConfig()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MODEL_PATHS", "x", "unknown variable REWARD_SERVER_MODEL_PATHS"),
        ("LIMITS_MAX_TEXTS", "many", "limits.max_texts"),
        ("LIMITS_MAX_TEXTS", "0", "max_texts is 0"),
        ("QUEUE_REQUEST_SECONDS", "-1", "request_seconds is -1"),
        ("QUEUE_MAX_PAIRS", "3", "below limits.max_texts"),
        ("QUEUE_MAX_BYTES", "3", "below limits.max_body_bytes"),
        ("API_KEY", "", "api_key"),
        ("API_KEY", "ä", "api_key"),
        ("CONFIG", "missing.yaml", "missing.yaml"),
    ],
)
def test_what_is_wrong_is_named(name, value, said):
    with pytest.raises(JobError, match=said):
        config_from_environment({f"REWARD_SERVER_{name}": value})
