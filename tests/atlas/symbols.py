"""Files and words letter by letter: Magika, the encoder of g2p-en, WordLlama's table of tokens."""

import re

import numpy as np
import torch
from torch import nn

from tests.atlas.atlas import representation
from tests.atlas.inputs import installed_files, sentences
from tests.atlas.networks import OnnxNetwork, in_parts
from tests.atlas.packages import files
from tests.atlas.texts import WORDLLAMA

MAGIKA = "magika==1.0.3"


def _ends(path):
    """The first and last 1,024 bytes, without white space around them, padded with 256."""
    content = path.read_bytes()
    row = np.full(2048, 256, dtype="int32")
    first, last = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
    row[: len(first)] = list(first)
    if last:
        row[-len(last) :] = list(last)
    return row


@representation(
    "Magika, files",
    "code",
    f"PyPI {MAGIKA}",
    "2,500 files of CPython and of installed packages, of many kinds",
    "maximum over the file",
    "LayerNorm",
    constraints=1,
)
def magika():
    """The layer before the classifier of file types."""
    tensor = "jax2tf_get_logits_/pjit_get_logits_/MagikaV2/LayerNorm_1/AddV2_1:0"
    network = OnnxNetwork(files(MAGIKA, "model.onnx")[0], tensor)
    rows = np.stack([_ends(path) for path in installed_files(2500)])
    return in_parts(lambda x: network(bytes=x), np.split(rows, 50)).reshape(len(rows), -1)


G2P = "g2p-en==2.1.0"


def _words():
    """Different words of the sentences."""
    return sorted({word for text in sentences(12000) for word in re.findall(r"\b[a-z]{3,16}\b", text)})[:4000]


def _g2p(trained):
    """Last state of a GRU that reads a word letter by letter."""
    weights = np.load(files(G2P, "checkpoint20.npz")[0])
    torch.manual_seed(0)
    network = nn.ModuleDict({"letters": nn.Embedding(29, 256), "gru": nn.GRU(256, 256, batch_first=True)})
    if trained:
        own = {"letters.weight": "enc_emb", "gru.weight_ih_l0": "enc_w_ih", "gru.weight_hh_l0": "enc_w_hh"}
        own |= {"gru.bias_ih_l0": "enc_b_ih", "gru.bias_hh_l0": "enc_b_hh"}
        network.load_state_dict({mine: torch.from_numpy(weights[theirs]) for mine, theirs in own.items()})

    def last(word):  # after its letters ("a" is 3) comes the end of the word, 2
        letters = torch.tensor([[ord(letter) - 94 for letter in word] + [2]])
        return network["gru"](network["letters"](letters))[1][0]

    return in_parts(last, _words())


_WORDS = ("word", f"PyPI {G2P}", "4,000 English words of CPython's docstrings", "last state", "GRU")


@representation("g2p-en, words", *_WORDS)
def g2p():
    """Trained to tell how a word is spoken."""
    return _g2p(True)


@representation("g2p-en untrained, words", *_WORDS, False)
def g2p_untrained():
    """The same network with random weights."""
    return _g2p(False)


@representation(
    "WordLlama 256, tokens",
    "static token",
    f"PyPI {WORDLLAMA}",
    "every eighth token of its table",
    "none",
    "embedding table",
)
def token_table():
    """The table itself."""
    from safetensors.numpy import load_file

    return next(iter(load_file(files(WORDLLAMA, "l2_supercat_256.safetensors")[0]).values())).astype("float32")[::8]
