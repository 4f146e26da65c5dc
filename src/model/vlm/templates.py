"""Chat templates of the model families that are converted (see ``python_script/convert_checkpoint.py``)."""

from typing import Literal

Compat = Literal["intended", "published"]
"""What a converted checkpoint computes: what the model was trained on, or what the published loaders made of it."""

_PARTS = """\
{%- macro said(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- for part in content -%}{%- if part['type'] == 'image' -%}{{ IMAGE }}{%- else -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{%- set given = messages[0]['role'] == 'system' -%}
{%- set system = said(messages[0]['content']) if given else SYSTEM -%}
{%- set turns = messages[1:] if given else messages -%}
"""

_VICUNA = """\
{{- BEGIN + ' ' + system -}}
{%- for message in turns -%}
{%- if message['role'] == 'user' -%}{{ ' USER: ' + said(message['content']) }}
{%- else -%}{{ ' ASSISTANT: ' + said(message['content']) + '</s>' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ ' ASSISTANT:' }}{%- endif -%}
"""

_LLAMA3 = """\
{%- macro turn(role) -%}{{ '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}{%- endmacro -%}
{{- '<|begin_of_text|>' + turn('system') + system + '<|eot_id|>' -}}
{%- for message in turns -%}
{{ turn(message['role']) + said(message['content']) + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ turn('assistant') }}{%- endif -%}
"""

LLAVA_V1 = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
VICUNA_V1 = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
LHRS = (
    VICUNA_V1 + " If your don't know the answer to a question, please don't share false information."  # as published
)


def vicuna_template(system: str, compat: Compat, marked: bool = False) -> str:
    """The template of LLaVA and Vicuna, with the spaces that sentencepiece puts before a text and after an image.

    The published loaders gave the model no ``<s>``.

    Args:
        system: what opens the conversation, unless it brings its own system turn.
        marked: images stand between ``<im_start>`` and ``<im_end>``.
    """
    image = "<im_start><image> <im_end>\n" if marked else "<image> \n"
    begin = "<s>" if compat == "intended" else ""
    return _constants(SYSTEM=system, IMAGE=image, BEGIN=begin) + _PARTS + _VICUNA


def llama3_template(system: str, compat: Compat) -> str:
    """The template of Llama 3; the published loader lost the newline behind an image."""
    image = "<image>\n" if compat == "intended" else "<image>"
    return _constants(SYSTEM=system, IMAGE=image) + _PARTS + _LLAMA3


def _constants(**values: str) -> str:
    return "".join(f"{{%- set {name} = {_quoted(value)} -%}}\n" for name, value in values.items())


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
