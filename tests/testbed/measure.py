"""What every meter says about an embedding, and how much of its labels it still tells."""

import torch

from wssl.evaluation.knn import knn_accuracy
from wssl.metrics.diagnosis import diagnose
from wssl.metrics.spectrum import embedding_std, participation_ratio, rankme, singular_spectrum


def centred_rank(spectrum):
    """Exponential of the entropy of the singular values' shares, about the mean."""
    share = spectrum.sqrt() / spectrum.sqrt().sum()
    return float(torch.special.entr(share).sum().exp())


def meters(rows, space):
    """Every meter of rows (n, m); `space` is "embedding" or "representation"."""
    found = diagnose(rows, space=space)
    values, m = {name: number.value for name, number in found.values.items()}, rows.shape[1]
    return {
        "n": len(rows),
        "m": m,
        "status": found.status,
        "dead directions": values["dead directions"],
        "effective dimensions": values["effective dimensions"],
        "live fraction": values["live fraction"],
        "RankMe": float(rankme(rows)),
        "participation ratio": float(participation_ratio(rows)),
        "std * sqrt m": float(embedding_std(rows)) * m**0.5,
        "centred rank": centred_rank(singular_spectrum(rows).clamp_min(0)),
    }


def told(bank, bank_labels, rows, labels):
    """Share of rows whose class their 20 nearest neighbours of the bank tell."""
    return knn_accuracy(bank, bank_labels, rows, labels, 20)


def embeddings(method, images, augmentation):
    """h and z of un-augmented images, shapes (N, d) and (N, m), of the networks that the method evaluates."""
    from wssl.evaluation.features import evaluating, extract_features

    encoder, projector = method.evaluated
    h = extract_features(encoder, images, augmentation=augmentation)
    with evaluating(method), torch.no_grad():
        return {"h": h, "z": torch.cat([projector(part) for part in h.split(512)])}
