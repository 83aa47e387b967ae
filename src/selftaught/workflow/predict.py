"""predict: what a fine-tuned model says of each sample, as a table."""

import csv
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from selftaught import bundle, disk
from selftaught.errors import UserError
from selftaught.train.progress import Meter
from selftaught.workflow.jobs import job_of
from selftaught.workflow.prepare import pick_device


def predict(run: Path, data: Any, out: Path, device: str, quiet: bool) -> Path:
    """Classes and probabilities of every sample of `data` by a classifier, or translations by a translator."""
    loaded = bundle.load(run)
    job = job_of(loaded, run)
    if out.suffix not in (".csv", ".parquet"):
        raise UserError(f"'{out}' must end in .csv or .parquet")
    if out.exists():
        raise UserError(f"'{out}' exists; name another file with --out, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    task = job.build(loaded.encoder, loaded.modality, loaded.info, "head")
    file = bundle.find(run) / job.file
    try:
        job.load(task, load_file(file))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"'{file}' does not fit its config.json: {str(error).splitlines()[0]}") from error
    source = job.open(loaded, data, quiet)
    with Meter("predict", len(source), quiet=quiet) as meter:
        columns = job.predictions(task, loaded.info, source, torch.device(pick_device(device)), meter)
    with disk.replacing(out) as temporary:
        if out.suffix == ".parquet":
            pq.write_table(pa.table(columns), temporary)
        else:
            with temporary.open("w", newline="", encoding="utf-8") as stream:
                writer = csv.writer(stream)
                writer.writerow(columns)
                for row in zip(*columns.values(), strict=True):
                    writer.writerow([f"{x:.6f}" if isinstance(x, float) else x for x in row])
    return out
