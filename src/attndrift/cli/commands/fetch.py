"""``attndrift fetch``: a study out of an object store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attndrift.cli.app import app
from attndrift.cli.console import STUDIES, JsonOption, example, fail, need, print_json
from attndrift.cli.study_options import is_s3


@app.command(rich_help_panel=STUDIES, epilog=example("attndrift fetch s3://bucket/studies/mine studies/mine"))
def fetch(
    url: Annotated[str, typer.Argument(help="Where the study is: s3://BUCKET/STUDY, or any URL that fsspec opens.")],
    folder: Annotated[Path, typer.Argument(help="A local folder for it.")],
    as_json: JsonOption = False,
) -> None:
    """Copy a study out of an object store, with its tables, so that every other command works on it."""
    need("study", *(["s3"] if is_s3(url) else []))
    from attndrift.sanitize import sanitize_line
    from attndrift.study.object_storage import ObjectStorage
    from attndrift.study.storage_url import open_storage

    storage = open_storage(url)
    if not isinstance(storage, ObjectStorage):
        fail(f"{url}: that is a folder, which needs no fetching")
    count = storage.fetch(folder, lambda name: typer.echo(sanitize_line(name), err=True))
    if as_json:
        print_json({"folder": str(folder), "fetched": count})
    else:
        typer.echo(f"{folder}: {count} files fetched")
