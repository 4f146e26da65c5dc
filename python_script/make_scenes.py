"""Write a data set of made overhead scenes: images/, scenes.csv, annotations.jsonl, and a contact sheet if asked.

    python python_script/make_scenes.py --output data/scenes --count 1000 --seed 0 --corrupt 0.5

Data sets of different seeds share no scene. A second run with the same arguments writes the same bytes.
"""

import argparse
import csv
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from src.dataset.scene_facts import Facts
from src.dataset.scene_kinds import KINDS
from src.dataset.scene_questions import questions
from src.dataset.scene_text import captions, corrupt
from src.dataset.scenes import make_scene, png_bytes, scene_seeds


def words(facts: Facts, seed: int, clean: bool, wordings: int) -> list[tuple[str, str]]:
    """(caption, "clean" or kind of corruption) of one scene, `wordings` of them, worded from the scene's seed."""
    rng = np.random.Generator(np.random.PCG64([seed, 2]))
    if clean:
        return [(text, "clean") for text in captions(facts, rng, wordings)]
    return [corrupt(facts, rng) for _ in range(wordings)]


def contact_sheet(size: int, seed: int, side: int = 168) -> Image.Image:
    """Two scenes of every kind, shrunk to `side` px, five kinds a row under their names."""
    step = side + 6
    rows = -(-len(KINDS) // 5)
    sheet = Image.new("RGB", (10 * step + 6, rows * (step + 20) + 6), "white")
    draw = ImageDraw.Draw(sheet)
    for index, kind in enumerate(KINDS):
        x, y = 6 + index % 5 * 2 * step, 6 + index // 5 * (step + 20)
        draw.text((x, y), kind, fill="black")
        for column in range(2):
            scene = make_scene(scene_seeds(seed, 1)[0] + 10 * index + column, kind, size)
            shrunk = scene.image.resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(shrunk, (x + column * step, y + 16))
    return sheet


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write a data set of made overhead scenes with exact ground truth.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--count", type=int, default=1000, help="number of scenes")
    parser.add_argument("--seed", type=int, default=0, help="data sets of different seeds share no scene")
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--corrupt", type=float, default=0.5, help="share of scenes with corrupted captions, 0 to 1")
    parser.add_argument("--captions-per-image", type=int, default=1, help="rows of scenes.csv for each image")
    parser.add_argument("--class-folders", action="store_true", help="write scenes_Image/<kind>/ instead of images/")
    parser.add_argument("--contact-sheet", action="store_true", help="also draw every kind several times")
    args = parser.parse_args(argv)
    if not 0 <= args.corrupt <= 1 or args.captions_per_image < 1 or args.size < 56:
        parser.error("need 0 <= --corrupt <= 1, --captions-per-image >= 1 and --size >= 56")
    try:
        seeds = scene_seeds(args.seed, args.count)
    except ValueError as error:
        parser.error(str(error))
    order = np.random.Generator(np.random.PCG64([args.seed, 3])).permutation(args.count)
    corrupted = set(order[: round(args.corrupt * args.count)].tolist())
    args.output.mkdir(parents=True, exist_ok=True)
    with (
        (args.output / ".scenes.partial").open("w", newline="", encoding="utf-8") as table,
        (args.output / "annotations.jsonl").open("w", encoding="utf-8") as notes,
    ):
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(("filename", "title", "scene", "corruption"))
        for index, seed in enumerate(tqdm(seeds, desc="scenes", unit="scene")):
            scene = make_scene(seed, size=args.size)
            name = f"scenes_Image/{scene.kind}/{seed:08d}.png" if args.class_folders else f"images/{seed:08d}.png"
            (args.output / name).parent.mkdir(parents=True, exist_ok=True)
            (args.output / name).write_bytes(png_bytes(scene.image))
            texts = words(scene.facts, seed, index not in corrupted, args.captions_per_image)
            rows.writerows((name, text, scene.kind, kind) for text, kind in texts)
            rng = np.random.Generator(np.random.PCG64([seed, 4]))
            note = {"filename": name, "scene": scene.kind, "seed": seed, "width": args.size, "height": args.size,
                    "facts": asdict(scene.facts), "attributes": scene.attributes, "relations": scene.relations,
                    "objects": [asdict(o) for o in scene.objects],
                    "questions": questions(scene.facts, scene.objects, scene.image.size, rng)}  # fmt: skip
            notes.write(json.dumps(note) + "\n")
    (args.output / ".scenes.partial").replace(args.output / "scenes.csv")  # its being there says that all is there
    if args.contact_sheet:
        (args.output / "contact_sheet.png").write_bytes(png_bytes(contact_sheet(args.size, args.seed)))
    print(f"{args.count} scenes, {len(corrupted)} of them with corrupted captions: {args.output / 'scenes.csv'}")


if __name__ == "__main__":
    main()
