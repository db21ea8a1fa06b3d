"""Using the winner on new images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from cluster.storage import Storage
from methods.data.folders import load_pictures
from methods.protocols.contract import logits_of
from orchestrator.result import Result


def predict(target: str | Path | Storage, images: str | Path) -> pd.DataFrame:
    """One row an image: file, class, confidence. After a few-shot study: file, then the embedding, e0, e1, ...

    Args:
        target: the run folder.
        images: a folder or zip of images, of any size; they are resized as the study's were.
    Raises:
        UserError: no run folder, no winner, or no images.
    """
    best = Result.open(target).winner()
    encoder = best.load_encoder()
    found, _ = load_pictures(images, encoder.shape)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    index = np.arange(len(found), dtype=np.int64)
    model: nn.Module = (best.load_predictor() if best.classifies else encoder).to(device)
    out = logits_of(model, found.images, index).cpu()
    if not best.classifies:
        columns = [f"e{i}" for i in range(out.shape[1])]
        return pd.concat([pd.DataFrame({"file": found.names}), pd.DataFrame(out.numpy(), columns=columns)], axis=1)
    confidence, label = out.softmax(dim=1).max(dim=1)
    return pd.DataFrame(
        {
            "file": found.names,
            "class": [best.classes[k] for k in label.tolist()],
            "confidence": confidence.numpy().round(4),
        }
    )
