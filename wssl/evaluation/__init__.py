"""What a representation is worth: features, nearest neighbours, linear probes, few labels, and what they are computed on."""

from wssl.evaluation.backbones import backbone, embed, images_below
from wssl.evaluation.cluster_study import cluster_study, coarse_labels, projector_layers
from wssl.evaluation.features import evaluating, extract_features, known_labels, top_k_accuracy
from wssl.evaluation.knn import knn_accuracy, knn_predict, knn_votes
from wssl.evaluation.layers import encoder_layers, layer_features, probe_layers
from wssl.evaluation.linear import LinearProbe, ViewsProbe, linear_probe, linear_probe_with_views
from wssl.evaluation.protocols import MLPProbe, mlp_probe, protocols
from wssl.evaluation.semi import SemiSupervised, fine_tune, semi_supervised
from wssl.evaluation.sources import join_embeddings, load_embeddings, load_labels

__all__ = [
    "LinearProbe", "MLPProbe", "SemiSupervised", "ViewsProbe", "backbone", "cluster_study", "coarse_labels",
    "embed", "encoder_layers", "evaluating", "extract_features", "fine_tune", "images_below", "join_embeddings", "knn_accuracy",
    "knn_predict", "knn_votes", "known_labels", "layer_features", "linear_probe", "linear_probe_with_views",
    "load_embeddings", "load_labels", "mlp_probe", "probe_layers", "projector_layers", "protocols",
    "semi_supervised", "top_k_accuracy",
]
