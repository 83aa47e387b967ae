"""embed: the encoder's features of each sample, as a file."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from selftaught import bundle, disk
from selftaught.errors import UserError
from selftaught.evaluation.features import encode
from selftaught.train.progress import Meter
from selftaught.workflow.kinds import kind_called
from selftaught.workflow.prepare import open_source, pick_device, same_kind, still_readable


def embed(run: Path, data: Any, out: Path, device: str, quiet: bool) -> Path:
    """Features [n, width] float32 in the order of the data: .npy with OUT.names.txt beside it, or .parquet."""
    if out.suffix not in (".npy", ".parquet"):
        raise UserError(f"'{out}' must end in .npy or .parquet")
    names_file = out.with_suffix(".names.txt")
    for file in (out, names_file) if out.suffix == ".npy" else (out,):
        if file.exists():
            raise UserError(f"'{file}' exists; name another file with --out, or remove it")
    loaded = bundle.load(run)
    out.parent.mkdir(parents=True, exist_ok=True)
    source = open_source(data, loaded.encoder.config.size, quiet)
    where = torch.device(pick_device(device))
    same_kind(source, loaded.modality, data)
    kind = kind_called(loaded.modality.name)
    reading = kind.reading(source, loaded.modality, np.arange(len(source)), quiet)
    with Meter("embed", len(reading.rows), quiet=quiet) as meter:
        found = encode(
            *(loaded.encoder, loaded.modality, reading.source, reading.rows, where),
            lambda done, _: meter.update(done),
        )
    features = reading.joined(found, len(source)).numpy()
    here = still_readable(source)
    features, names = features[here], [source.names[i] for i in here.tolist()]
    with disk.replacing(out) as temporary:
        if out.suffix == ".npy":
            with temporary.open("wb") as stream:
                np.save(stream, features)
            disk.write_text(names_file, "".join(name.replace("\n", " ") + "\n" for name in names))
        else:
            flat = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1])
            pq.write_table(pa.table({"name": names, "features": flat}), temporary)
    return out
