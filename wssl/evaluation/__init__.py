"""What a representation is worth: features, nearest neighbours."""

from wssl.evaluation.features import evaluating, extract_features
from wssl.evaluation.knn import knn_accuracy, knn_predict
