"""The `llama` forward pass in float32: dequantised weights, float32 keys and values, no tricks."""

import numpy as np


class Model:
    def __init__(self, file):
        meta = {key.removeprefix("llama."): value for key, value in file.metadata.items()}
        assert meta["general.architecture"] == "llama"
        self.layers = meta["block_count"]
        self.heads = meta["attention.head_count"]
        self.kv_heads = meta["attention.head_count_kv"]
        self.head_dim = meta["embedding_length"] // self.heads
        self.eps = np.float32(meta["attention.layer_norm_rms_epsilon"])
        pairs = np.arange(0, self.head_dim, 2, dtype=np.float64)
        self.frequencies = meta["rope.freq_base"] ** (-pairs / self.head_dim)
        # Transposed copies would cost memory; numpy multiplies by a transposed view as fast.
        self.weights = {name: file.tensor(name) for name in file.tensors}
        self.output = self.weights.get("output.weight", self.weights["token_embd.weight"])

    def norm(self, x, weight):
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps) * weight

    def rotate(self, x, positions):
        """x: [rows, heads, head_dim]; adjacent elements form a pair."""
        angles = positions[:, None, None] * self.frequencies
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        even, odd = x[..., 0::2], x[..., 1::2]
        out = np.empty_like(x)
        out[..., 0::2] = even * cos - odd * sin
        out[..., 1::2] = even * sin + odd * cos
        return out

    def attention(self, q, keys, values, positions):
        """q: [rows, heads, d]; keys, values: [positions, kv_heads, d]."""
        out = np.empty_like(q)
        group = self.heads // self.kv_heads
        hidden = np.arange(len(keys))[None, :] > positions[:, None]
        for head in range(self.heads):
            k, v = keys[:, head // group], values[:, head // group]
            scores = q[:, head] @ k.T / np.float32(np.sqrt(self.head_dim))
            scores[hidden] = -np.inf
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[:, head] = scores @ v / scores.sum(axis=1, keepdims=True)
        return out

    def forward(self, ids, cache):
        """Hidden states [rows, hidden] behind the last norm. `cache` is a list of (keys, values), one
        a layer, or empty; it is extended."""
        first = len(cache[0][0]) if cache else 0
        positions = np.arange(first, first + len(ids))
        x = self.weights["token_embd.weight"][ids]
        for layer in range(self.layers):
            w = lambda name: self.weights[f"blk.{layer}.{name}.weight"]
            h = self.norm(x, w("attn_norm"))
            q = self.rotate((h @ w("attn_q").T).reshape(len(ids), self.heads, -1), positions)
            k = self.rotate((h @ w("attn_k").T).reshape(len(ids), self.kv_heads, -1), positions)
            v = (h @ w("attn_v").T).reshape(len(ids), self.kv_heads, -1)
            if first:
                k, v = np.concatenate([cache[layer][0], k]), np.concatenate([cache[layer][1], v])
                cache[layer] = (k, v)
            else:
                cache.append((k, v))
            x = x + self.attention(q, k, v, positions).reshape(len(ids), -1) @ w("attn_output").T
            h = self.norm(x, w("ffn_norm"))
            gate = h @ w("ffn_gate").T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ w("ffn_up").T)) @ w("ffn_down").T
        return self.norm(x, self.weights["output_norm.weight"])

    def logits(self, states):
        return states @ self.output.T


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
