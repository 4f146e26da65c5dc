"""Zero-shot classification of sets of class folders with a CLIP model.

    python python_script/evaluation/clip_classification.py --image_root val --model_path RemoteCLIP-ViT-L-14.pt

``val`` holds ``AID_Image/Airport/x1.jpg`` and the like. Writes a JSON file for each set with top-1, top-5 and mean
per-class recall, their intervals, the confusion matrix and what could not be used, and a picture of it beside.
"""

import argparse
from pathlib import Path

from src.config import exit_on_job_error
from src.evaluation.class_sets import find_sets, prompts_of, set_name
from src.evaluation.flags import add_feature_flags, load_store
from src.evaluation.results import result_path
from src.evaluation.zero_shot import TASK, evaluate_set
from src.evaluation.zero_shot_page import write_picture

FORMS = ("png", "html", "svg")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    roots = "folders of sets (val, with AID_Image and others in it), or sets themselves (default data/images)"
    add("--image_root", nargs="+", default=["data/images"], metavar="FOLDER", help=roots)
    add("--output_path", "--output", type=Path, default=Path("output/zero_shot"), help="folder (%(default)s)")
    sentences = "with {} for the class, or a YAML file; default: those of src/evaluation/data/class_sets.yaml"
    add("--templates", nargs="+", default=[], metavar="TEXT", help=sentences)
    add("--picture", nargs="*", choices=FORMS, default=["png", "html"], help="its forms (default png html)")
    add_feature_flags(parser)
    args = parser.parse_args(argv)
    with exit_on_job_error():
        folders = find_sets(args.image_root)
        for folder in folders if args.templates else ():  # a slip in them shows before the model is loaded
            prompts_of(set_name(folder), args.templates)
        store = load_store(args)
        for folder in folders:
            result_path(args.output_path, TASK, set_name(folder), store.clip.path, {"images": str(folder)})
        for folder in folders:
            result = evaluate_set(store, folder, args.templates)
            path = result.write(args.output_path)
            print(result, path, sep="\n")
            for form in args.picture:
                picture = path.with_name(f"{path.stem}.{form}")
                write_picture(result, picture)
                print(picture)


if __name__ == "__main__":
    main()
