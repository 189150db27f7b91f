"""Writes a tower as the `mmproj` GGUF file that llama.cpp's converter would make of it: matrices in float16, all else
in float32."""
import dataclasses
import struct

import numpy as np


@dataclasses.dataclass
class Shape:
    side: int = 96
    patch: int = 12
    hidden: int = 128
    heads: int = 4
    ffn: int = 512
    layers: int = 5
    merge: int = 2
    out: int = 576
    eps: float = 1e-6


UINT32, FLOAT32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
ALIGNMENT = 32


def text(value):
    data = value.encode()
    return struct.pack('<Q', len(data)) + data


def entry(key, kind, data):
    return text(key) + struct.pack('<I', kind) + data


def metadata(c):
    strings = {'general.architecture': 'clip', 'general.type': 'mmproj', 'general.license': 'apache-2.0',
               'general.name': 'Trivium picture reader for SmolLM2-135M-Instruct', 'clip.projector_type': 'idefics3'}
    numbers = {'image_size': c.side, 'preproc_image_size': c.side, 'patch_size': c.patch, 'embedding_length': c.hidden,
               'feed_forward_length': c.ffn, 'block_count': c.layers, 'attention.head_count': c.heads,
               'projector.scale_factor': c.merge, 'projection_dim': c.out}
    entries = [entry(key, STRING, text(value)) for key, value in strings.items()]
    entries += [entry('clip.' + key, BOOL, b'\1') for key in ('has_vision_encoder', 'use_gelu')]
    entries += [entry('general.file_type', UINT32, struct.pack('<I', 1))]
    entries += [entry('clip.vision.' + key, UINT32, struct.pack('<I', value)) for key, value in numbers.items()]
    entries += [entry('clip.vision.attention.layer_norm_epsilon', FLOAT32, struct.pack('<f', c.eps))]
    entries += [entry('clip.vision.' + key, ARRAY, struct.pack('<IQ3f', FLOAT32, 3, 0.5, 0.5, 0.5))
                for key in ('image_mean', 'image_std')]
    return entries


def tensors(c, weights):
    """Names and arrays, slowest dimension first."""
    for name, value in weights.items():
        value = value.float().numpy()
        if name == 'fc.weight':
            yield 'mm.model.fc.weight', value.astype(np.float16)
        elif name == 'patch_embd.weight':
            yield 'v.patch_embd.weight', value.reshape(c.hidden, 3, c.patch, c.patch).astype(np.float16)
        elif name == 'position_embd':
            yield 'v.position_embd.weight', value
        else:
            yield 'v.' + name, value.astype(np.float16) if value.ndim > 1 else value


def write(path, c, weights):
    entries, infos, data = metadata(c), b'', b''
    named = list(tensors(c, weights))
    for name, value in named:
        shape = value.shape[::-1]
        kind = 1 if value.dtype == np.float16 else 0
        infos += text(name) + struct.pack(f'<I{len(shape)}QIQ', len(shape), *shape, kind, len(data))
        data += value.tobytes() + bytes(-value.nbytes % ALIGNMENT)
    head = b'GGUF' + struct.pack('<IQQ', 3, len(named), len(entries)) + b''.join(entries) + infos
    with open(path, 'wb') as file:
        file.write(head + bytes(-len(head) % ALIGNMENT) + data)
