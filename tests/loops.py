"""The paper's formulas in plain loops and float64: what the layers are held against."""

import numpy as np


def encoder_layer(layer, x, others=None):
    """Attention of the rows of ``x [B, C]`` over ``others [keys, C]``, residual, norm, feed-forward, residual, norm.

    ``others=None``: over ``x`` itself. ``layer`` gives the weights.
    """
    state = {name: value.double().numpy() for name, value in layer.state_dict().items()}
    others = x if others is None else others
    heads, (b, c) = layer.self_attn.num_heads, x.shape
    width = c // heads

    def norm(row, name):
        centred = row - row.mean()
        return centred / np.sqrt((centred**2).mean() + 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]

    def project(rows, which):
        part = slice(which * c, (which + 1) * c)
        weight, bias = state["self_attn.in_proj_weight"][part], state["self_attn.in_proj_bias"][part]
        return np.stack([weight @ row + bias for row in rows])

    query, key, value = project(x, 0), project(others, 1), project(others, 2)
    out = np.zeros_like(x)
    for i in range(b):
        related = np.zeros(c)
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = np.array([query[i, part] @ row[part] for row in key]) / np.sqrt(width)
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            for weight, row in zip(weights, value, strict=True):
                related[part] += weight * row[part]
        related = state["self_attn.out_proj.weight"] @ related + state["self_attn.out_proj.bias"]
        first = norm(x[i] + related, "norm1")
        hidden = np.maximum(state["linear1.weight"] @ first + state["linear1.bias"], 0)
        out[i] = norm(first + state["linear2.weight"] @ hidden + state["linear2.bias"], "norm2")
    return out


def induced_layer(layer, x, others=None):
    """Set Transformer's block: inducing points attend to the set, and ``x [B, C]`` attends to the points."""
    points = layer.inducing.detach().double().numpy()
    return encoder_layer(layer.distribute, x, encoder_layer(layer.summarise, points, x if others is None else others))
