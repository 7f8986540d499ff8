"""Running networks in parts: torch modules, ONNX graphs cut open at a tensor, and a transformer encoder that BERT's weights fit."""

import numpy as np
import torch
from torch import nn


def in_parts(function, parts):
    """`function` of every part, one array."""
    with torch.inference_mode():
        return np.concatenate([np.asarray(function(part)) for part in parts])


class OnnxNetwork:
    """An ONNX file with an inner tensor as its only output."""

    def __init__(self, path, tensor=None):
        import onnx
        import onnxruntime

        model = onnx.load(path)
        if tensor is not None:
            del model.graph.output[:]
            model.graph.output.append(onnx.ValueInfoProto(name=tensor))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, **inputs):
        """The tensor for these inputs, by name."""
        return self.session.run(None, inputs)[0]


class Encoder(nn.Module):
    """The encoder of BERT (post-norm, GELU) with its embeddings, sized by the weights that it is to take."""

    def __init__(self, vocabulary, width, inner, layers, heads, positions, norm_eps=1e-12):
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.kinds, self.norm = nn.Embedding(2, width), nn.LayerNorm(width, eps=norm_eps)
        layer = nn.TransformerEncoderLayer(width, heads, inner, 0.0, "gelu", norm_eps, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, tokens, mask):
        """States of all tokens, shape (batch, length, width)."""
        places = torch.arange(tokens.shape[1])
        x = self.norm(self.words(tokens) + self.places(places) + self.kinds.weight[0])
        return self.layers(x, src_key_padding_mask=~mask)


def untrained_weights(network, std=0.02, seed=0):
    """BERT's initialisation: normal weights, zero biases."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in network.named_parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=std, generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(weight)
    return network.eval()


def bert_weights(network, state, prefix=""):
    """Put the weights of a BERT into an `Encoder`."""
    own = {
        "words.weight": "embeddings.word_embeddings.weight",
        "places.weight": "embeddings.position_embeddings.weight",
        "kinds.weight": "embeddings.token_type_embeddings.weight",
        "norm.weight": "embeddings.LayerNorm.weight",
        "norm.bias": "embeddings.LayerNorm.bias",
    }
    new = {mine: state[prefix + theirs] for mine, theirs in own.items()}
    parts = {
        "self_attn.out_proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "linear1": "intermediate.dense",
        "linear2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    for i in range(len(network.layers.layers)):
        mine, theirs = f"layers.layers.{i}.", f"{prefix}encoder.layer.{i}."
        for kind in ("weight", "bias"):
            three = [state[f"{theirs}attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            new[f"{mine}self_attn.in_proj_{kind}"] = torch.cat(three)
            for a, b in parts.items():
                new[f"{mine}{a}.{kind}"] = state[f"{theirs}{b}.{kind}"]
    network.load_state_dict(new)
    return network.eval()


def mean_of_tokens(states, mask):
    """Mean over the tokens that are there."""
    weight = mask.unsqueeze(-1).float()
    return (states * weight).sum(1) / weight.sum(1)
