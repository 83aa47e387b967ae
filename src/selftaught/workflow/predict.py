"""predict: what a fine-tuned model says of each sample, as a table."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from selftaught import bundle
from selftaught.errors import UserError
from selftaught.train.progress import Meter
from selftaught.workflow.columns import check_out, write_columns
from selftaught.workflow.jobs import job_of
from selftaught.workflow.prepare import pick_device


def predict(run: Path, data: Any, out: Path, device: str, quiet: bool) -> Path:
    """Classes and probabilities of every sample of `data` by a classifier, or translations by a translator."""
    loaded = bundle.load(run)
    job = job_of(loaded, run)
    check_out(out)
    task = job.build(loaded.encoder, loaded.modality, loaded.info, "head")
    file = bundle.find(run) / job.file
    try:
        job.load(task, load_file(file))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"'{file}' does not fit its config.json: {str(error).splitlines()[0]}") from error
    source = job.open(loaded, data, quiet)
    with Meter("predict", len(source), quiet=quiet) as meter:
        columns = job.predictions(task, loaded.info, source, torch.device(pick_device(device)), meter)
    write_columns(out, columns)
    return out
