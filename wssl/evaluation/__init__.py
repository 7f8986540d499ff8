"""What a representation is worth: features, nearest neighbours, and what they are computed on."""

from wssl.evaluation.features import evaluating, extract_features
from wssl.evaluation.knn import knn_accuracy, knn_predict
from wssl.evaluation.sources import load_embeddings, load_labels
