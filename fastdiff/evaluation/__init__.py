"""How good samples are: distances and accuracies, each with the number of images and beside what real images reach."""

from fastdiff.evaluation.evaluate import judge
from fastdiff.evaluation.features import ImageClassifier, pixels, train_classifier
from fastdiff.evaluation.frechet import frechet_distance, gaussian_frechet, moments, real_vs_real
from fastdiff.evaluation.neighbours import nearest

__all__ = [
    "ImageClassifier",
    "frechet_distance",
    "gaussian_frechet",
    "judge",
    "moments",
    "nearest",
    "pixels",
    "real_vs_real",
    "train_classifier",
]
