"""Features, probes and what they are computed on."""

from wssl.evaluation.sources import load_embeddings, load_labels
