"""Keys of the server come from the environment and a YAML file; what is wrong is named."""

import pytest

from python_script.serve_reward import uvicorn_config
from src.errors import JobError
from src.serving.config import ServerConfig, config_from_environment, is_loopback


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


@pytest.mark.parametrize(
    "key", ["0123", "1e5", "null", "~", "'quoted'", '"', "[a]", "a #b", "${host}", "\\${x}", " a: b"]
)
def test_the_key_is_taken_as_it_is(key):
    assert config_from_environment({"REWARD_SERVER_API_KEY": key}).api_key == key
    assert config_from_environment({"REWARD_SERVER_MODEL_PATH": key}).model.path == key


@pytest.mark.parametrize(
    ("host", "alone"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
                        ("10.0.0.7", False), ("box", False)]
)  # fmt: skip
def test_others_get_in_with_a_key_alone(host, alone):
    assert is_loopback(host) == alone
    if alone:
        uvicorn_config(ServerConfig(host=host))
    else:
        with pytest.raises(JobError, match=f"host={host} lets others in: set an api_key"):
            uvicorn_config(ServerConfig(host=host))
    made = uvicorn_config(ServerConfig(host=host, api_key="s3cret", connections=7))
    assert (made.host, made.limit_concurrency) == (host, 7)
