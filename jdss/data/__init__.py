"""Data sets as arrays or sequences, splits, and what happens to images on the device."""

from jdss.data.datasets import DATASETS, Dataset, DatasetNotPreparedError, load_dataset
from jdss.data.examples import Examples, Normalization, make_examples, training_batch
from jdss.data.labels import stratified_split
from jdss.data.rows import keep_on, read_sequence

__all__ = [
    "DATASETS",
    "Dataset",
    "DatasetNotPreparedError",
    "Examples",
    "Normalization",
    "keep_on",
    "load_dataset",
    "make_examples",
    "read_sequence",
    "stratified_split",
    "training_batch",
]
