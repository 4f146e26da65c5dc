"""Whatever is sent, the server answers by its own description, and never with a failure of its own."""

import asyncio
import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from src.serving.config import LimitsConfig, ServerConfig
from src.serving.reward_server import create_app
from tests.serving.conftest import BASE64, refused, started

ROUTES = ("/v1/rewards", "/v1/score")
HOSTILE = [
    "",
    " ",
    "\x00",
    "\ud800",
    "<image>",
    "<|image_pad|>",
    "<|im_end|>",
    "data:",
    "http://a/b.png",
    "../x",
    "9" * 999,
]
PLAIN = ["two ships", "Ein Feld.", "在哪里"]
TEXTS = st.sampled_from(PLAIN) | st.text(min_size=1, max_size=20) | st.sampled_from(PLAIN * 3 + HOSTILE)
IMAGES = st.sampled_from([*BASE64.values()]) | st.just("data:image/png;base64," + BASE64["tanks"]) | TEXTS
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def described(schema: dict, texts: st.SearchStrategy = TEXTS) -> st.SearchStrategy:
    """Values of a JSON schema, of the few forms that ours have."""
    if "anyOf" in schema:
        return st.one_of(*(described(form, texts) for form in schema["anyOf"]))
    match schema["type"]:
        case "null":
            return st.none()
        case "string":
            return texts
        case "array":
            return st.lists(described(schema["items"], texts), min_size=schema.get("minItems", 0), max_size=4)
        case "object":
            texts_of = {"images": IMAGES, "image_data": IMAGES}
            parts = schema["properties"].items()
            properties = {name: described(part, texts_of.get(name, TEXTS)) for name, part in parts}
            required = {name: properties.pop(name) for name in schema.get("required", [])}
            return st.fixed_dictionaries(required, optional=properties)
    raise AssertionError(schema)


@st.composite
def bodies(draw, schema: dict) -> bytes:
    """A body as described; or one with a part of it replaced, dropped or cut; or any bytes at all."""
    body = draw(described(schema))
    match draw(st.sampled_from(["described", "described", "replaced", "dropped", "cut", "any JSON", "any"])):
        case "replaced":
            body[draw(st.sampled_from(sorted(schema["properties"])))] = draw(ANYTHING)
        case "dropped" if body:
            body.pop(draw(st.sampled_from(sorted(body))))
        case "cut":
            text = json.dumps(body).encode()
            return text[: draw(st.integers(0, len(text)))]
        case "any JSON":
            body = draw(ANYTHING)
        case "any":
            return draw(st.binary(max_size=50) | st.just(b"[" * 70_000))
    if draw(st.booleans()):
        return json.dumps(body).encode()
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")


LIMITED = ServerConfig(limits=LimitsConfig(max_body_bytes=80_000, max_texts=3, max_images=2, max_text_chars=900))
OPENAPI = create_app(LIMITED).openapi()


def asked(route: str) -> dict:
    return OPENAPI["paths"][route]["post"]["requestBody"]["content"]["application/json"]["schema"]


@settings(max_examples=80, deadline=None, suppress_health_check=[*HealthCheck])
@given(
    requests=st.lists(st.sampled_from(ROUTES).flatmap(lambda r: st.tuples(st.just(r), bodies(asked(r)))), min_size=5)
)
def test_no_body_makes_the_server_fail(tiny_scorer, requests):
    async def run():
        async with started(create_app(LIMITED, load=lambda: tiny_scorer)) as http:
            while not (await http.get("/ready")).is_success:
                await asyncio.sleep(0.001)
            http.headers["Content-Type"] = "application/json"
            return await asyncio.gather(*(http.post(route, content=body) for route, body in requests))

    for (route, body), response in zip(requests, asyncio.run(run()), strict=True):
        assert str(response.status_code) in OPENAPI["paths"][route]["post"]["responses"]
        assert response.status_code < 500, (body, response.text)
        if response.status_code != 200:
            refused(response)
            continue
        scores = response.json()["scores"]
        scores = [score["score"] for score in scores] if route == "/v1/rewards" else scores
        assert len(scores) == (2 if route == "/v1/rewards" else len(json.loads(body)["texts"]))
        assert all(score > 0 for score in scores)
