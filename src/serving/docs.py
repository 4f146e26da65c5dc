"""The page at ``/docs``: what the OpenAPI description says, as plain HTML that asks nothing of the network."""

from typing import Any

from jinja2 import Environment

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ api.info.title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .2rem .6rem; vertical-align: top;
border-bottom: 1px solid #ddd } code, pre { background: #f4f4f4; padding: 0 .2rem } h2 { margin-top: 2.5rem }
</style>
<h1>{{ api.info.title }}</h1>
<p>For programs: <a href="openapi.json">openapi.json</a></p>
{% for path, methods in api.paths.items() %}{% for method, route in methods.items() %}
<h2><code>{{ method | upper }} {{ path }}</code></h2>
<p>{{ route.description }}</p>
{% if route.requestBody %}{% set body = route.requestBody.content["application/json"].schema %}
<table><tr><th>key of the JSON body<th>type<th>meaning
{% for name, part in body.properties.items() %}
<tr><td><code>{{ name }}</code>{% if name in body.required %} (required){% endif %}
<td>{{ kind(part) }}<td>{{ part.description }}
{% endfor %}</table>
{% endif %}
<table><tr><th>status<th>meaning
{% for status, answer in route.responses.items() %}<tr><td>{{ status }}<td>{{ answer.description }}
{% endfor %}</table>
{% endfor %}{% endfor %}
</html>
"""


def docs_page(openapi: dict[str, Any]) -> str:
    """HTML of an OpenAPI description, as FastAPI makes it of our routes."""
    return Environment(autoescape=True).from_string(PAGE).render(api=openapi, kind=_kind)


def _kind(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(map(_kind, schema["anyOf"]))
    return f"list of {_kind(schema['items'])}" if schema["type"] == "array" else schema["type"]
