"""Write the pairs that a selection kept in the format that a trainer reads.

    python python_script/export_subset.py output/mine --to csv              # CLIP training: filename,title,score,id
    python python_script/export_subset.py output/mine --to sharegpt         # LLaMA-Factory, with dataset_info.json
    python python_script/export_subset.py output/mine --to datasets         # datasets.load_from_disk
    python python_script/export_subset.py output/mine --to webdataset       # numbered tars

Needs a selection: run select_subset.py first. A row, conversation or sample is one pair: an image with several kept
captions comes several times. Images within the data are written as files; those that are files stay where they are
(csv, sharegpt), unless --copy-images is given. Pairs that cannot be written are named in NAME.left_out.jsonl.
"""

import argparse
from pathlib import Path

from src.config import exit_on_job_error
from src.curation.export import FORMATS, ExportOptions, export_subset


def main(argv: list[str] | None = None) -> None:
    default = ExportOptions()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subset", type=Path, help="subset_ids.parquet, or the folder that holds it")
    parser.add_argument("--to", required=True, choices=FORMATS, help="format")
    parser.add_argument("--output", type=Path, help="folder (default: one named as the format, beside the subset)")
    parser.add_argument("--name", default=default.name, help="of the file or folder, and of the entry (default kept)")
    parser.add_argument("--copy-images", action="store_true", help="csv, sharegpt: copy image files into the export")
    parser.add_argument("--image-root", type=Path, help="csv, sharegpt: folder that image paths shall be relative to")
    parser.add_argument(
        "--question",
        default=default.question,
        help=f"sharegpt: what captions without a question answer (default {default.question!r})",
    )
    parser.add_argument("--shard-size", type=int, default=default.shard_size, help="webdataset: samples in a tar")
    parser.add_argument("--scores-dir", type=Path, help="folder of the score table (default: the one the subset names)")
    args = parser.parse_args(argv)
    with exit_on_job_error():
        options = ExportOptions(args.name, args.copy_images, args.image_root, args.question, args.shard_size)
        export = export_subset(args.subset, args.to, args.output, options, args.scores_dir)
        print(export)
        print(f"data   {export.path}")
        if export.image_root is not None:
            print(f"images below {export.image_root}")
        if export.reasons is not None:
            print(f"left out: {export.reasons}")


if __name__ == "__main__":
    main()
