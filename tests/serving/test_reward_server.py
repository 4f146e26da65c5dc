"""Rewards over HTTP are the scorer's, whatever the company; and nothing but a score is ever told as one."""

import asyncio
import base64
import json
import re
import time
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from src.curation import batching
from src.curation.scorer import Scorer
from src.dataset.collate import PairEncoder
from src.errors import JobError
from src.serving import batcher as batcher_module
from src.serving.config import LimitsConfig, QueueConfig
from src.serving.image_cache import ImageCache
from src.serving.reward_server import create_app
from src.serving.service import Service
from tests.serving.conftest import BASE64, IMAGES, published, refused, serving, started

TEXTS = ["two ships", "two ships near a pier", "Ein Feld. 在哪里", "no", "a b c d e f g h i j"]


def ask(coroutine_of, scorer, *args, **options):
    async def run():
        async with serving(scorer, *args, **options) as http:
            return await coroutine_of(http)

    return asyncio.run(run())


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_the_published_route(nano_scorer, prefix):
    async def run(http):
        return await http.post("/v1/rewards", json=published(prefix + BASE64["harbour"], "Describe.", *TEXTS[:2]))

    response = ask(run, nano_scorer)
    right = nano_scorer.score_candidates(IMAGES["harbour"], "Describe.", TEXTS[:2])
    assert response.status_code == 200
    answer = response.json()
    scores = [score.pop("score") for score in answer["scores"]]
    assert answer == {"model": "any", "scores": [{"completion_id": "completion1"}, {"completion_id": "completion2"}]}
    assert scores == pytest.approx(right, abs=1e-5)
    assert abs(scores[0] - scores[1]) > 1e-3


def test_an_image_is_optional_and_so_is_the_name_of_the_model(tiny_scorer):
    async def run(http):
        bodies = [published(image, "How many?", "two", "three") for image in (None, "")]
        bodies.append({**bodies[0], "image_data": None, "extra": [1]})
        del bodies[2]["model"]
        return [(await http.post("/v1/rewards", json=body)).json() for body in bodies]

    right = tiny_scorer.score_candidates([], "How many?", ["two", "three"])
    for answer in ask(run, tiny_scorer):
        assert [score["score"] for score in answer["scores"]] == pytest.approx(right, abs=1e-5)


@pytest.mark.parametrize("budget", [1, 300, 8192])
def test_scores_are_those_of_the_scorer_whatever_the_company(tiny_scorer, monkeypatch, budget):
    """60 requests at once; every image passes the vision tower once, equal pairs the model once."""
    rng = np.random.default_rng(budget)
    bodies = []
    for _ in range(60):
        images = [str(name) for name in rng.choice([*IMAGES], rng.integers(0, 3), replace=False)]
        texts = [str(text) for text in rng.choice(TEXTS, rng.integers(1, 5))]
        question = str(rng.choice(["", "How many ships?", "<image>" * len(images) + "Wo?"]))
        bodies.append((images, question, texts))
    encoded, original = [], batching.encode_images
    monkeypatch.setattr(batcher_module, "encode_images", lambda model, new: encoded.extend(new) or original(model, new))
    scorer = Scorer(tiny_scorer.model, tiny_scorer.encoder, token_budget=budget, workers=2)

    async def run(http):
        def body(images, question, texts):
            return {"images": [BASE64[name] for name in images], "question": question, "texts": texts}

        answers = await asyncio.gather(*(http.post("/v1/score", json=body(*asked)) for asked in bodies))
        return [answer.json()["scores"] for answer in answers], (await http.get("/metrics")).text

    answers, metrics = ask(run, scorer)
    for (images, question, texts), scores in zip(bodies, answers, strict=True):
        right = tiny_scorer.score_candidates([IMAGES[name] for name in images], question, texts)
        assert scores == pytest.approx(right, abs=1e-5)
    assert len(encoded) == len({name for images, _, _ in bodies for name in images})
    counts = {name: int(count) for name, count in re.findall(r"^scorers_(\w+)_total (\d+)$", metrics, re.M)}
    assert counts["pairs"] == sum(len(texts) for _, _, texts in bodies)
    assert counts["image_misses"] == len(encoded)
    if budget == 1:
        assert counts["batches"] == 60
    if budget == 8192:
        assert counts["batches"] <= 30
        assert counts["rows"] < counts["pairs"]


def test_images_are_shared_across_requests_within_a_bound(tiny_scorer, monkeypatch):
    opened, original = [], PairEncoder.image
    monkeypatch.setattr(PairEncoder, "image", lambda self, source: opened.append(source) or original(self, source))
    sizes = {name: original(tiny_scorer.encoder, content).pixel_values.nbytes for name, content in IMAGES.items()}

    async def run(http):
        scores = []
        for name in ["runway", "runway", "tanks", "runway"]:
            scores += (await http.post("/v1/score", json={"images": [BASE64[name]], "texts": ["a b"]})).json()["scores"]
        return scores, (await http.get("/metrics")).text

    scores, _ = ask(run, tiny_scorer)
    assert len(opened) == 2
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert scores[0] == pytest.approx(scores[3], abs=1e-6)
    opened.clear()
    room = max(sizes["runway"], sizes["tanks"])  # for one of them
    small, metrics = ask(run, tiny_scorer, queue=QueueConfig(cache_bytes=room))
    assert len(opened) == 3
    assert small == pytest.approx(scores, abs=1e-6)
    assert int(re.search(r"^scorers_image_cache_bytes (\d+)$", metrics, re.M)[1]) <= room


def png(*size: int) -> str:
    file = BytesIO()
    Image.new("RGB", size).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


GOOD = {"images": [BASE64["tanks"]], "question": "", "texts": ["a", "b"]}


@pytest.mark.parametrize(
    ("change", "status", "kind", "named"),
    [
        ({"images": [BASE64["tanks"], "http://127.0.0.1/a.png"]}, 400, "unsafe_path", "images.1"),
        ({"images": ["file:///etc/passwd"]}, 400, "unsafe_path", "images.0"),
        ({"images": ["./a.png"]}, 400, "unsafe_path", "images.0"),
        ({"images": ["/etc/passwd"]}, 400, "unsafe_path", "images.0"),
        ({"images": ["AAAA"]}, 400, "unreadable_image", "images.0"),
        ({"images": [""]}, 400, "empty_image", "images.0"),
        ({"images": ["data:image/png,AAAA"]}, 400, "unreadable_image", "images.0"),
        ({"images": [BASE64["tanks"][:400]]}, 400, "truncated_image", "images.0"),
        ({"images": [png(5001, 5000)]}, 400, "image_too_large", "images.0"),
        ({"images": [BASE64["tanks"]] * 9}, 422, "too_many_images", "limit is 8"),
        ({"texts": ["a", " "]}, 422, "empty_text", "texts.1"),
        ({"texts": ["a", "b <|image_pad|>"]}, 422, "reserved_token", "texts.1"),
        ({"question": "<|image_pad|>?"}, 422, "reserved_token", "question"),
        ({"question": "<image> and <image>"}, 422, "bad_record", "question"),
        ({"texts": ["a"] * 65}, 422, "too_many_texts", "limit is 64"),
        ({"texts": ["a", "b" * 20_001]}, 422, "text_too_long", "texts.1"),
        ({"texts": ["é " * 2000 + str(k) for k in range(60)]}, 422, "too_many_tokens", "limit is 65536"),
        ({"texts": []}, 422, "bad_request", "texts"),
        ({"texts": ["a", 7]}, 422, "bad_request", "texts.1"),
        ({"texts": None}, 422, "bad_request", "texts"),
    ],
)
def test_what_cannot_be_scored_is_named(tiny_scorer, change, status, kind, named):
    async def run(http):
        return await http.post("/v1/score", json={**GOOD, **change}), await http.post("/v1/score", json=GOOD)

    wrong, right = ask(run, tiny_scorer)
    assert refused(wrong) == (status, kind)
    assert named in wrong.json()["message"]
    assert len(right.json()["scores"]) == 2


def test_parts_of_the_published_request_have_their_own_names(tiny_scorer):
    async def run(http):
        bodies = [published("AAAA", "?", "a", "b"), published(None, "?", "a", ""), published(None, "<image>", "a", "b")]
        return [await http.post("/v1/rewards", json=body) for body in [*bodies, {"completion1": "a"}]]

    image, text, problem, missing = ask(run, tiny_scorer)
    assert image.status_code == 400
    assert image.json()["message"].startswith("image_data: ")
    assert text.json()["message"].startswith("completion2: ")
    assert problem.json()["message"].startswith("problem_description: ")
    assert missing.json() == {"kind": "bad_request", "message": "problem_description: Field required"}


@pytest.mark.parametrize("declared", [True, False])
def test_no_more_of_a_body_is_read_than_the_limit(tiny_scorer, declared):
    sent = []

    async def chunks():
        for _ in range(1000):
            sent.append(1000)
            yield b"x" * 1000

    async def run(http):
        headers = {"Content-Type": "application/json", **({"Content-Length": "1000000"} if declared else {})}
        return await http.post("/v1/score", content=chunks(), headers=headers)

    assert refused(ask(run, tiny_scorer, LimitsConfig(max_body_bytes=20_000))) == (413, "body_too_large")
    assert sum(sent) <= (0 if declared else 21_000)


def test_images_are_measured_before_they_are_decoded(tiny_scorer, monkeypatch):
    """Defect 114: an image could be of any size."""
    monkeypatch.setattr(PairEncoder, "image", lambda *_: pytest.fail("it is too large to be decoded"))
    body = {"images": [png(2000, 2000 - k) for k in range(3)], "texts": ["a"]}

    async def run(http):
        return await http.post("/v1/score", json=body), (await http.get("/metrics")).text

    answer, metrics = ask(run, tiny_scorer, queue=QueueConfig(max_bytes=2**25))
    assert refused(answer) == (413, "request_too_large")
    assert "scorers_held_bytes 0" in metrics


def test_memory_is_held_for_what_an_image_takes_while_it_is_decoded_and_after(tiny_scorer, monkeypatch):
    held, rooms, original, score_rows = [], [], PairEncoder.image, batching.score_rows
    made = batcher_module.Room.__init__
    monkeypatch.setattr(batcher_module.Room, "__init__", lambda room, size: rooms.append(room) or made(room, size))

    def noted(self, source):
        held.append(rooms[-1].used)
        return original(self, source)

    def scored(*args):
        held.append(rooms[-1].used)
        return score_rows(*args)

    monkeypatch.setattr(PairEncoder, "image", noted)
    monkeypatch.setattr(batcher_module, "score_rows", scored)
    body = {"images": [png(640, 480)], "texts": ["a"]}

    async def run(http):
        return [(await http.post("/v1/score", json=body)).status_code for _ in range(2)]

    assert ask(run, tiny_scorer) == [200, 200]
    decoding, first, again = held
    prepared = original(tiny_scorer.encoder, base64.b64decode(body["images"][0])).pixel_values.nbytes
    sent = len(json.dumps(body, separators=(",", ":")))
    assert decoding >= 640 * 480 * 11 + 2 * prepared
    assert first == sent + prepared
    assert again == sent, "it is known, and takes nothing more"


class Slow:
    """A model that takes its time, or fails where it is told to."""

    def __init__(self, monkeypatch, seconds: float = 0.0, fail_at: int = 0):
        self.seconds, self.fail_at, self.calls = seconds, fail_at, 0
        monkeypatch.setattr(batcher_module, "score_rows", self)

    def __call__(self, model, images, rows, *rest):
        self.calls += 1
        time.sleep(self.seconds)
        if any(len(ids) == self.fail_at for _, ids in rows):
            raise RuntimeError("out of memory")
        return batching.score_rows(model, images, rows, *rest)


def test_a_full_queue_says_when_to_come_back_and_recovers(tiny_scorer, monkeypatch):
    Slow(monkeypatch, 0.2)

    async def run(http):
        some = await asyncio.gather(*(http.post("/v1/score", json=GOOD) for _ in range(10)))
        return some, await http.post("/v1/score", json=GOOD)

    some, later = ask(run, tiny_scorer, LimitsConfig(max_texts=2), QueueConfig(max_pairs=6))
    assert sorted(response.status_code for response in some) == [200] * 3 + [429] * 7
    full = next(response for response in some if response.status_code == 429)
    assert refused(full) == (429, "overloaded")
    assert 1 <= int(full.headers["retry-after"]) <= 30
    assert later.status_code == 200


def test_requests_beyond_the_memory_are_put_off(tiny_scorer, monkeypatch):
    Slow(monkeypatch, 0.2)
    bodies = [{**GOOD, "images": [png(100 + k, 100)], "question": "x" * 5000} for k in range(20)]

    async def run(http):
        some = await asyncio.gather(*(http.post("/v1/score", json=body) for body in bodies))
        held = (await http.get("/metrics")).text
        return some, await http.post("/v1/score", json=bodies[0]), held, await http.post("/v1/score", json=large)

    large = {**GOOD, "images": [png(150 + k, 100) for k in range(8)]}
    room = QueueConfig(max_bytes=800_000)  # an image of this size is 301 kB of prepared pixels, and 722 kB on the way
    some, later, metrics, large = ask(run, tiny_scorer, LimitsConfig(max_body_bytes=30_000), room)
    statuses = [response.status_code for response in some]
    assert set(statuses) <= {200, 503}
    assert statuses.count(503) >= 10
    assert all(r.headers["retry-after"] == "1" for r in some if r.status_code == 503)
    assert "scorers_held_bytes 0" in metrics
    assert later.status_code == 200
    assert refused(large) == (413, "request_too_large")  # by itself


def test_a_request_that_takes_too_long_is_told_so_and_not_run_for_nothing(tiny_scorer, monkeypatch):
    model = Slow(monkeypatch, 0.5)

    async def run(http):
        first = asyncio.create_task(http.post("/v1/score", json={**GOOD, "texts": ["first"]}))
        await asyncio.sleep(0.2)  # the model is at it now
        late = await asyncio.gather(*(http.post("/v1/score", json=GOOD) for _ in range(3)))
        await first
        await asyncio.sleep(0.4)
        return late

    for response in ask(run, tiny_scorer, queue=QueueConfig(request_seconds=0.25)):
        assert refused(response) == (503, "timed_out")
        assert "retry-after" in response.headers
    assert model.calls == 1


def test_the_loop_is_free_while_the_model_works_and_images_are_decoded(tiny_scorer, monkeypatch):
    """Defect 113: the model was called inside the handler."""
    Slow(monkeypatch, 0.4)
    original = PairEncoder.image
    monkeypatch.setattr(PairEncoder, "image", lambda self, source: time.sleep(0.3) or original(self, source))

    async def run(http):
        scored = asyncio.create_task(http.post("/v1/score", json=GOOD))
        waits = []
        while not scored.done():
            began = time.perf_counter()
            assert (await http.get("/health")).status_code == 200
            waits.append(time.perf_counter() - began)
            await asyncio.sleep(0.01)
        return (await scored).status_code, waits

    status, waits = ask(run, tiny_scorer)
    assert status == 200
    assert len(waits) > 15
    assert max(waits) < 0.25


def test_a_request_that_breaks_the_model_leaves_the_others_whole(tiny_scorer, monkeypatch):
    """And what cannot be computed is an error, never a number."""
    right = tiny_scorer.score([{"text": text} for text in TEXTS])
    (prompt,) = tiny_scorer.encoder.token_ids([tiny_scorer.encoder.prompt({"text": TEXTS[4]}, [])])
    Slow(monkeypatch, fail_at=len(prompt))

    async def run(http):
        return await asyncio.gather(*(http.post("/v1/score", json={"texts": [text]}) for text in TEXTS))

    *good, bad = ask(run, tiny_scorer, queue=QueueConfig(wait_ms=200))
    assert refused(bad) == (500, "scoring_failed")
    assert [response.json()["scores"][0] for response in good] == pytest.approx(right[:4], abs=1e-5)


def test_a_model_that_only_fails_is_unhealthy_until_it_works_again(tiny_scorer, monkeypatch):
    model = Slow(monkeypatch)
    (prompt,) = tiny_scorer.encoder.token_ids([tiny_scorer.encoder.prompt({"text": "bad"}, [])])
    model.fail_at = len(prompt)

    async def run(http):
        seen = []
        for text in ["bad"] * 5 + ["a longer text that works"]:
            await http.post("/v1/score", json={"texts": [text]})
            seen.append((await http.get("/health")).status_code)
        return seen

    assert ask(run, tiny_scorer) == [200] * 4 + [503, 200]


def test_only_json_is_taken(tiny_scorer):
    async def run(http):
        body = json.dumps(GOOD)
        types = ["text/plain", "application/x-www-form-urlencoded", "application/JSON; charset=utf-8"]
        return [await http.post("/v1/score", content=body, headers={"Content-Type": name}) for name in types]

    *wrong, right = ask(run, tiny_scorer)
    assert [refused(response) for response in wrong] == [(415, "not_json")] * 2
    assert right.status_code == 200


def test_a_score_that_is_no_number_is_an_error(tiny_scorer, monkeypatch):
    monkeypatch.setattr(batcher_module, "score_rows", lambda model, images, rows, *rest: [1.0, float("nan")])

    async def run(http):
        return await http.post("/v1/score", json=GOOD)

    response = ask(run, tiny_scorer)
    assert refused(response) == (422, "not_finite"), "asked again it would be the same"
    assert response.json()["message"].startswith("texts.1: ")


def test_what_was_accepted_is_answered_at_the_end(tiny_scorer, monkeypatch):
    Slow(monkeypatch, 0.1)

    async def run():
        async with serving(tiny_scorer) as http:
            asked = [asyncio.create_task(http.post("/v1/score", json=GOOD)) for _ in range(12)]
            await asyncio.sleep(0.05)
        return await asyncio.gather(*asked)

    responses = asyncio.run(run())
    assert [len(response.json()["scores"]) for response in responses] == [2] * 12


def test_the_key(tiny_scorer):
    """Defect 114: anyone could ask."""

    async def run(http):
        found = []
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}):
            found.append(await http.post("/v1/score", json=GOOD, headers=header))
        right = await http.post("/v1/score", json=GOOD, headers={"Authorization": "Bearer s3cret"})
        return found, right, await http.get("/ready")

    found, right, ready = ask(run, tiny_scorer, api_key="s3cret")
    assert [refused(response) for response in found] == [(401, "unauthorized")] * 3
    assert found[0].headers["www-authenticate"] == "Bearer"
    assert (right.status_code, ready.status_code) == (200, 200)


def test_before_the_model_is_there_and_if_it_never_comes(tiny_scorer):
    async def run(load):
        async with started(create_app(load=load)) as http:
            answers = []
            for pause in (0.02, 0.5):
                await asyncio.sleep(pause)
                answers += [await http.get("/health"), await http.get("/ready")]
                answers.append(await http.post("/v1/rewards", json=published(None, "?", "a", "b")))
            return answers

    early = asyncio.run(run(lambda: time.sleep(0.2) or tiny_scorer))
    assert [answer.status_code for answer in early] == [200, 503, 503, 200, 200, 200]
    assert refused(early[2]) == (503, "model_loading")
    assert early[2].headers["retry-after"] == "2"

    def fail():
        time.sleep(0.2)
        raise JobError("no such model: 'x'")

    never = asyncio.run(run(fail))
    assert [answer.status_code for answer in never] == [200, 503, 503, 503, 503, 503]
    assert never[5].json() == {
        "kind": "model_not_loaded",
        "message": "the model could not be loaded: no such model: 'x'",
    }


def test_a_server_that_is_stopped_while_it_loads_does_not_wait(tiny_scorer):
    async def run():
        async with started(create_app(load=lambda: time.sleep(3) or tiny_scorer)) as http:
            return (await http.get("/ready")).status_code

    began = time.monotonic()
    assert asyncio.run(run()) == 503
    assert time.monotonic() - began < 2


def test_other_routes_answer_in_the_same_form_and_the_docs_tell_of_all(tiny_scorer):
    async def run(http):
        await http.post("/v1/score", json=GOOD)
        wrong = [await http.get("/nothing"), await http.get("/v1/score")]
        return wrong, (await http.get("/openapi.json")).json(), (await http.get("/metrics"))

    wrong, openapi, metrics = ask(run, tiny_scorer)
    assert [refused(response) for response in wrong] == [(404, "not_found"), (405, "method_not_allowed")]
    assert set(openapi["paths"]) == {"/v1/rewards", "/v1/score", "/health", "/ready", "/metrics"}
    body = openapi["paths"]["/v1/rewards"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["required"]) == {"problem_description", "completion1", "completion2"}
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    line = re.compile(r"# (HELP|TYPE) \w+ .+|\w+({\w+=\"[^\"]*\"(,\w+=\"[^\"]*\")*})? [\d.e+-]+")
    assert all(line.fullmatch(text) for text in metrics.text.splitlines())
    assert 'scorers_requests_total{route="/v1/score",status="200"} 1' in metrics.text
    assert 'scorers_request_seconds_bucket{route="/v1/score",le="+Inf"} 2' in metrics.text


def test_the_docs_need_no_network(tiny_scorer):
    async def run(http):
        return [await http.get(path) for path in ("/docs", "/redoc")]

    docs, redoc = ask(run, tiny_scorer)
    assert docs.headers["content-type"].startswith("text/html")
    for said in ("/v1/rewards", "/v1/score", "/health", "/ready", "/metrics", "completion1", "problem_description",
                 "list of string", "The queue is full", "Score two completions"):  # fmt: skip
        assert said in docs.text
    assert not re.findall(r"//|<script|\bsrc=|@import|url\(", docs.text)
    assert refused(redoc) == (404, "not_found")


@pytest.mark.parametrize(
    ("address", "key", "warnings"), [("10.1.2.3", None, 1), ("10.1.2.3", "s", 0), ("127.0.0.1", None, 0)]
)
def test_a_server_without_a_key_that_others_reach_says_so_once(tiny_scorer, caplog, address, key, warnings):
    async def run(http):
        http.headers["Authorization"] = "Bearer s"
        return [await http.post(f"http://{address}:8000/v1/score", json={"texts": ["a"]}) for _ in range(2)]

    assert [answer.status_code for answer in ask(run, tiny_scorer, api_key=key)] == [200, 200]
    assert [f"whoever reaches {address} gets scores" in text for text in caplog.messages].count(True) == warnings


def test_an_image_larger_than_the_cache_drives_nothing_out(tiny_scorer):
    small = tiny_scorer.encoder.image(IMAGES["tanks"])
    large = tiny_scorer.encoder.image(base64.b64decode(png(900, 900)))
    cache = ImageCache(small.pixel_values.nbytes)
    cache.get("small", lambda: small)
    assert cache.get("large", lambda: large)[1] == large.pixel_values.nbytes > cache.room
    assert "small" in cache
    assert "large" not in cache
    assert cache.used == cache.room


def test_features_of_images_are_kept_instead_of_their_pixels(tiny_scorer):
    cache = ImageCache(2**20)
    shown, size = cache.get("a", lambda: tiny_scorer.encoder.image(IMAGES["tanks"]))
    assert size == shown.encoded.pixel_values.nbytes > 0
    with torch.inference_mode():
        whole = batching.encode_images(tiny_scorer.model, {"a": shown.encoded, "b": shown.encoded})["a"]
    shown.keep_features(whole)
    assert shown.encoded.pixel_values.nbytes == 0
    assert shown.features.untyped_storage().nbytes() == whole.nbytes < whole.untyped_storage().nbytes()
    assert cache.get("a", lambda: pytest.fail("it is there"))[0] is shown


def test_an_error_that_nobody_expected_is_counted(tiny_scorer, monkeypatch):
    def broken(service):
        raise ValueError("a bug")

    async def run(http):
        monkeypatch.setattr(Service, "check_health", broken)
        return await http.get("/health"), (await http.get("/metrics")).text

    answer, metrics = ask(run, tiny_scorer)
    assert refused(answer) == (500, "internal")
    assert re.search(r'scorers_requests_total\{route="/health",status="500"\} 1', metrics)
