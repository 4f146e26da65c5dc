"""Image-to-text and text-to-image recall of a CLIP model on captioned images.

    python python_script/evaluation/eval_retrieval.py --target_root captions.csv --data_root images

The CSV has the columns ``filepath,title``, a row per caption, any number of rows per image. Any other data set that
score_dataset.py reads will do, such as Parquet with images inside and lists of captions (name its columns with
--image_column and --target_column). Writes one JSON file with recall at k, mean recall, their intervals, counts and
what could not be used.
"""

import argparse
from pathlib import Path

from src.config import exit_on_job_error
from src.dataset.records import DataSpec
from src.evaluation.flags import add_feature_flags, load_store
from src.evaluation.results import result_path
from src.evaluation.retrieval_set import TASK, data_name, data_settings, evaluate_retrieval


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--target_root", required=True, metavar="DATA", help="CSV or other data set: file, folder or pattern")
    add("--data_root", help="folder that image paths are relative to (default: data, or where there is none, DATA's)")
    add("--output_dir", "--output", default="output/retrieval", help="folder (%(default)s)")
    add("--recall_k", type=int, nargs="+", default=[1, 5, 10], metavar="K", help="(default 1 5 10)")
    add("--image_column", default="filepath", help="column of images (%(default)s)")
    add("--target_column", default="title", help="column of captions or lists of them (%(default)s)")
    add("--name", help="of the set in the result (default: the name of DATA, without wildcards)")
    add_feature_flags(parser)
    args = parser.parse_args(argv)
    with exit_on_job_error():
        root = args.data_root or ("data" if Path("data").is_dir() else None)
        spec = DataSpec(args.target_root, root, args.image_column, args.target_column)
        settings = data_settings(spec)  # what is wrong with the data set shows before the model is loaded
        store = load_store(args)
        result_path(args.output_dir, TASK, args.name or data_name(spec.path), store.clip.path, settings)
        result = evaluate_retrieval(store, spec, tuple(args.recall_k), args.name)
        print(result, result.write(args.output_dir), sep="\n")


if __name__ == "__main__":
    main()
