"""The families of models by name: prompts and boxes as their authors have them.

``geochat``, ``skysensegpt``, ``vhm`` and ``lhrs`` are for what ``python_script/convert_checkpoint.py`` makes.
"""

from src.evaluation.adapters.base import Family

_REGION = "Please provide the bounding box coordinate of the region this sentence describes: "
_QWEN2_VL = {
    "grounding": "Output the bounding box of the following object: <|object_ref_start|>{question}<|object_ref_end|>"
}
_JSON = {"grounding": "Locate the following object and output its bounding box in JSON format: {question}"}
_THOUSANDTHS = (
    " Answer with [x1, y1, x2, y2] for each, in thousandths of the image's width and height, and nothing else."
)

FAMILIES = {
    "qwen2_vl": Family(_QWEN2_VL, "qwen2_vl"),
    "qwen2_5_vl": Family(_JSON, "qwen2_5_vl", frame="patches"),
    "qwen2vl_rs": Family(_QWEN2_VL, "qwen2_vl"),
    "qwen2vl_rs_r1": Family(_QWEN2_VL, "qwen2_vl_reasoning", thinks=True),
    "internvl": Family({"grounding": _REGION + "<ref>{question}</ref>"}, "internvl2"),
    "internvl3": Family({"grounding": _REGION + "<ref>{question}</ref>"}, "internvl3"),
    "llava": Family({"grounding": _REGION + "{question}"}, "internvl2", bound=1),
    # Square brackets, as in the authors' own prompts; the published evaluation wrote {grounding}.
    "geochat": Family({"grounding": "[grounding] {question}"}, "geochat", frame="square"),
    "skysensegpt": Family({"grounding": "[detection] {question}"}, "skysensegpt", frame="square"),
    "vhm": Family({"cls": "{CLS} {question}", "vqa": "{VQA} {question}", "grounding": "{VG} {question}"}, "vhm"),
    "lhrs": Family(
        {"cls": "[CLS] {question}", "vqa": "[CONSIZE] {question}", "grounding": "[DET] {question}"}, "lhrs_nova"
    ),
    "generic": Family({"grounding": _REGION + "{question}" + _THOUSANDTHS}, "internvl2"),
}
