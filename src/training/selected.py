"""Which data set, and which part of it, a trainer is to read: given by itself, or by a selection cut from it."""

from dataclasses import replace
from pathlib import Path

from src.curation.score_table import check_input, data_spec, read_manifest
from src.curation.select import scores_of, subset_file
from src.dataset.records import DataSpec
from src.errors import JobError


def selected_data(spec: DataSpec, subset: str | None, path_key: str) -> tuple[DataSpec, Path | None]:
    """The data set to read, and its ``subset_ids.parquet`` if there is one.

    Args:
        spec: what the configuration says; with an empty ``path`` the data set is that of the selection.
        subset: ``subset_ids.parquet`` or its folder.
        path_key: key of the configuration that ``spec.path`` came from.

    Raises:
        JobError: neither is given, no such selection, or data other than it was cut from.
    """
    if subset is None:
        if not spec.path:
            raise JobError(f"give {path_key}, or data.subset of a selection")
        return spec, None
    ids = subset_file(subset)
    scores = scores_of(ids)
    if not spec.path:
        if scores is None:
            raise JobError(f"data.subset: {ids} does not say what it was cut from; give {path_key} too")
        scored = data_spec(read_manifest(scores))
        root, source = spec.image_root or scored.image_root, spec.source_column or scored.source_column
        spec = replace(scored, image_root=root, source_column=source)
    if scores is not None and scores.is_dir():
        check_input(read_manifest(scores), spec)
    return spec, ids
