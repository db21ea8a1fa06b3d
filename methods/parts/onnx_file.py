"""An ONNX file as a frozen encoder, computed by onnxruntime on the CPU.

The file's bytes are among the encoder's options, so that what is exported needs the file no more.

B images, H height, W width, D embedding.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from methods.encoder import Encoder, Options, Shape, Statistics
from methods.parts.encoder_base import Normalise, check_size
from methods.parts.shown import Shown, shown_size
from search_spaces.domains import UserError

USUAL = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's: a file does not say how its network wants colours normalised."""

SUFFIX = ".onnx"


class OnnxEncoder(Encoder):
    """A network in an ONNX file: its first output, maps averaged over positions. It passes on no gradient and is not trained.

    Attributes:
        graph: the file.
        shown: how it is shown images: one or three channels, first or last, in ImageNet's normalisation.
    """

    name = "onnx"
    layers = ("embedding",)

    def __init__(
        self, shape: Shape, mean: Statistics, std: Statistics, graph: bytes, size: list[int] | int | None = None
    ) -> None:
        """
        Args:
            shape: (C, H, W) of the study's images.
            mean, std: of the data; kept for the encoder's file.
            graph: the file.
            size: pixels at which it is shown the images: a side, or height and width; None for the file's own where it has
                one, else to have it chosen (``shown_size``).
        Raises:
            UserError: onnxruntime is not installed, cannot read the file, or the network takes or gives something else.
        """
        super().__init__()
        check_size("an ONNX encoder", shape)
        self.shape = shape
        self.normalise = Normalise(mean, std)  # this encoder's file reads it
        self.graph = graph
        self._session: Any = None
        given = self._runs().get_inputs()[0].shape
        if len(given) != 4 or not {1, 3} & {given[1], given[3]}:
            raise UserError(f"an ONNX encoder must take 1 or 3 channels, [B, C, H, W], got an input {given}; export it again")
        self.last = given[1] not in (1, 3)
        channels, own = (given[3], given[1:3]) if self.last else (given[1], given[2:])
        fixed = all(isinstance(n, int) for n in own)
        self.rows = given[0] if isinstance(given[0], int) else 0
        if fixed and size not in (None, own[0], list(own)):
            raise UserError(f"this ONNX file takes images of {own[0]} x {own[1]} pixels, got size {size}; leave the size out")
        chosen = tuple(own) if fixed else tuple(size) if isinstance(size, list) else shown_size(shape, USUAL, size=size)
        self.shown = Shown(shape, MEAN[:channels], STD[:channels], (chosen[0], chosen[1]), square=fixed)
        self.resizable = not fixed
        self.dim = self(torch.zeros(1, *shape)).shape[1]

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        x = self.shown(images).float()
        x = (x.permute(0, 2, 3, 1) if self.last else x).cpu().contiguous()
        rows = self.rows or len(x)
        parts = [self._run(part, rows) for part in x.split(rows)]
        return torch.cat(parts).to(images.device)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        return {"embedding": self(images)[:, :, None, None]}

    def options(self) -> Options:
        return {"size": list(self.shown.size), "graph": b64encode(self.graph).decode()}

    def _run(self, x: Tensor, rows: int) -> Tensor:
        """float [b, D] of b images; a file with a fixed batch gets blank ones besides."""
        blank = x.new_zeros(rows - len(x), *x.shape[1:])
        session = self._runs()
        try:
            found = session.run(None, {session.get_inputs()[0].name: torch.cat([x, blank]).numpy()})[0]
        except Exception as error:  # of onnxruntime's own
            raise UserError(f"the ONNX network failed on images {list(x.shape)} ({_plain(error)}); export it again") from error
        z = torch.from_numpy(np.asarray(found))[: len(x)]
        if z.dim() not in (2, 4) or len(z) != len(x) or not z.is_floating_point():
            raise UserError(f"an ONNX encoder must give [B, D] or [B, D, h, w], got {list(z.shape)}; export the embedding")
        return z.mean((2, 3)).float() if z.dim() == 4 else z.float()

    def _runs(self) -> Any:
        if self._session is None:
            try:
                runtime = import_module("onnxruntime")
            except ImportError as error:
                raise UserError("an ONNX encoder needs onnxruntime; pip install 'labelwise[onnx]'") from error
            options = runtime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            try:
                self._session = runtime.InferenceSession(self.graph, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # of onnxruntime's own
                raise UserError(f"onnxruntime cannot read the file as a network ({_plain(error)}); export it again") from error
        return self._session

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}  # a session is neither pickled nor copied, but made again


def onnx_encoder(path: Path, shape: Shape, mean: Statistics, std: Statistics, size: int | None) -> Encoder:
    """The encoder in an ONNX file. Raises UserError as ``OnnxEncoder`` does."""
    try:
        encoder = OnnxEncoder(shape, mean, std, path.read_bytes(), size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    encoder.origin = f"{path} (its licence is its maker's)"
    return encoder


def onnx_again(name: str, shape: Shape, mean: Statistics, std: Statistics, options: Options) -> Encoder:
    """The encoder of an exported file, by its options. Raises UserError where they hold no network."""
    if "graph" not in options:
        raise UserError(f"encoder {name} is a file of your own, got its kind; set encoder to the file's path")
    size: Any = options["size"]
    return OnnxEncoder(shape, mean, std, b64decode(str(options["graph"])), size)


def _plain(error: Exception) -> str:
    return " ".join(str(error).split())
