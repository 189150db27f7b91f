"""Forward passes in float32: dequantised weights, float32 keys and values, no tricks. Each family is a row of
options, taken from its model's definition."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Family:
    halves: bool = True           # RoPE turns (i, i + d/2); else neighbours, as GGUF files of `llama` are permuted
    qk_norm: bool = False         # RMSNorm of each head of q and k, before RoPE
    post_norms: bool = False      # RMSNorm of what attention and FFN give, before it is added
    gelu: bool = False            # GELU (tanh) of the gate; else SiLU
    scaled_embedding: bool = False  # by sqrt(hidden)
    period: int = 0               # every period-th layer sees everything, the rest a window; 0: all see everything
    normalised: bool = True       # the weights of the chosen experts sum to one


FAMILIES = {
    "llama": Family(halves=False),  # and Mixtral
    "qwen2": Family(),
    "qwen2moe": Family(normalised=False),
    "qwen3": Family(qk_norm=True),
    "qwen3moe": Family(qk_norm=True),
    "gemma3": Family(qk_norm=True, post_norms=True, gelu=True, scaled_embedding=True, period=6),
}
LOCAL_BASE = 10000.0  # of Gemma 3's window layers


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Model:
    def __init__(self, file):
        architecture = file.metadata["general.architecture"]
        self.meta = {key.removeprefix(architecture + "."): value for key, value in file.metadata.items()}
        meta = self.meta
        self.family = FAMILIES[architecture]
        self.layers = meta["block_count"]
        self.heads = meta["attention.head_count"]
        self.kv_heads = meta["attention.head_count_kv"]
        self.head_dim = meta.get("attention.key_length", meta["embedding_length"] // self.heads)
        self.eps = np.float32(meta["attention.layer_norm_rms_epsilon"])
        self.window = meta.get("attention.sliding_window", 0) if self.family.period else 0
        pairs = np.arange(0, self.head_dim, 2, dtype=np.float64)
        factor = meta.get("rope.scaling.factor", 1.0)
        self.frequencies = meta["rope.freq_base"] ** (-pairs / self.head_dim) / factor
        self.local_frequencies = LOCAL_BASE ** (-pairs / self.head_dim)
        # Transposed copies would cost memory; numpy multiplies by a transposed view as fast.
        self.weights = {name: file.tensor(name) for name in file.tensors}
        self.output = self.weights.get("output.weight", self.weights["token_embd.weight"])

    def norm(self, x, weight):
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps) * weight

    def rotate(self, x, positions, frequencies):
        """x: [rows, heads, head_dim]."""
        angles = positions[:, None, None] * frequencies
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        half = self.head_dim // 2
        first, second = (slice(half), slice(half, None)) if self.family.halves else (slice(0, None, 2), slice(1, None, 2))
        a, b = x[..., first], x[..., second]
        out = np.empty_like(x)
        out[..., first] = a * cos - b * sin
        out[..., second] = a * sin + b * cos
        return out

    def attention(self, q, keys, values, positions, window):
        """q: [rows, heads, d]; keys, values: [positions, kv_heads, d]."""
        out = np.empty_like(q)
        group = self.heads // self.kv_heads
        distance = positions[:, None] - np.arange(len(keys))[None, :]
        hidden = (distance < 0) | (distance >= window) if window else distance < 0
        for head in range(self.heads):
            k, v = keys[:, head // group], values[:, head // group]
            scores = q[:, head] @ k.T / np.float32(np.sqrt(self.head_dim))
            scores[hidden] = -np.inf
            out[:, head] = softmax(scores) @ v
        return out

    def gated(self, h, gate, up, down):
        g = h @ gate.T
        if self.family.gelu:
            g = g / 2 * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * (g + np.float32(0.044715) * g * g * g)))
        else:
            g = g * sigmoid(g)
        return (g * (h @ up.T)) @ down.T

    def experts(self, h, w):
        """Every row through its own experts, one after the other."""
        chances = softmax(h @ w("ffn_gate_inp").T)
        out = np.zeros_like(h)
        for row in range(len(h)):
            chosen = np.argsort(-chances[row], kind="stable")[:self.meta["expert_used_count"]]
            weights = chances[row, chosen]
            if self.family.normalised:
                weights = weights / weights.sum()
            for weight, e in zip(weights, chosen):
                gate, up, down = (w(f"ffn_{name}_exps")[e] for name in ("gate", "up", "down"))
                out[row] += weight * self.gated(h[row], gate, up, down)
        shared = w("ffn_gate_inp_shexp", None)
        if shared is not None:
            share = sigmoid(h @ shared)[:, None]
            out += share * self.gated(h, w("ffn_gate_shexp"), w("ffn_up_shexp"), w("ffn_down_shexp"))
        return out

    def project(self, h, name, weights, layer):
        bias = self.weights.get(f"blk.{layer}.{name}.bias", np.float32(0))
        return (h @ weights(name).T + bias).reshape(len(h), -1, self.head_dim)

    def block(self, x, layer, positions, cache):
        family = self.family
        w = lambda name, *otherwise: self.weights.get(f"blk.{layer}.{name}.weight", *otherwise) \
            if otherwise else self.weights[f"blk.{layer}.{name}.weight"]
        is_local = self.window and (layer + 1) % family.period != 0
        frequencies = self.local_frequencies if is_local else self.frequencies
        h = self.norm(x, w("attn_norm"))
        q, k, v = (self.project(h, name, w, layer) for name in ("attn_q", "attn_k", "attn_v"))
        if family.qk_norm:
            q, k = self.norm(q, w("attn_q_norm")), self.norm(k, w("attn_k_norm"))
        q, k = self.rotate(q, positions, frequencies), self.rotate(k, positions, frequencies)
        if len(cache) > layer:
            k, v = np.concatenate([cache[layer][0], k]), np.concatenate([cache[layer][1], v])
            cache[layer] = (k, v)
        else:
            cache.append((k, v))
        window = self.window if is_local else 0
        h = self.attention(q, k, v, positions, window).reshape(len(x), -1) @ w("attn_output").T
        x = x + (self.norm(h, w("post_attention_norm")) if family.post_norms else h)
        h = self.norm(x, w("ffn_norm"))
        if self.meta.get("expert_count", 0):
            h = self.experts(h, w)
        else:
            h = self.gated(h, w("ffn_gate"), w("ffn_up"), w("ffn_down"))
        return x + (self.norm(h, w("post_ffw_norm")) if family.post_norms else h)

    def forward(self, ids, cache):
        """Hidden states [rows, hidden] behind the last norm. `cache` is a list of (keys, values), one
        a layer, or empty; it is extended."""
        first = len(cache[0][0]) if cache else 0
        positions = np.arange(first, first + len(ids))
        x = self.weights["token_embd.weight"][ids]
        if self.family.scaled_embedding:
            x = x * np.float32(np.sqrt(self.meta["embedding_length"]))
        for layer in range(self.layers):
            x = self.block(x, layer, positions, cache)
        return self.norm(x, self.weights["output_norm.weight"])

    def logits(self, states):
        return states @ self.output.T


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
