"""Messages between a process and its workers: a JSON document and named tensors, each after its length; no pickle."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from typing import Any

import safetensors.torch

from metarl.files.header import dump_json
from metarl.params import Params

_LENGTHS = struct.Struct("<QQ")
_PIECE = 1 << 20
Frame = tuple[bytes, bytes]
"""A message as it is sent: JSON, and the content of a safetensors file."""


def send(descriptor: int, document: Mapping[str, Any], tensors: Params) -> None:
    """Write a message.

    :raises BrokenPipeError: nobody reads it any more.
    """
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    text = dump_json({"document": dict(document), "tensors": list(plain)}).encode()
    data = safetensors.torch.save(plain) if plain else b""
    for part in (_LENGTHS.pack(len(text), len(data)) + text, data):
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(descriptor, rest[:_PIECE]) :]


def receive(descriptor: int) -> Frame | None:
    """Read a message; None where the other end is closed."""
    head = _read(descriptor, _LENGTHS.size)
    if head is None:
        return None
    parts = [_read(descriptor, length) for length in _LENGTHS.unpack(head)]
    return None if parts[0] is None or parts[1] is None else (parts[0], parts[1])


def parse(frame: Frame) -> tuple[dict[str, Any], Params]:
    """Return a message's document and tensors, which are in the order in which they were sent."""
    text, data = frame
    message = json.loads(text)
    stored = safetensors.torch.load(data) if data else {}
    return message["document"], {name: stored[name].clone() for name in message["tensors"]}


def _read(descriptor: int, n: int) -> bytes | None:
    parts = []
    while n:
        part = os.read(descriptor, min(n, _PIECE))
        if not part:
            return None
        parts.append(part)
        n -= len(part)
    return b"".join(parts)
