"""Peak memory of this process, for training and evaluation; imports none of the training code."""

import resource

import torch


def peak_memory_gib() -> float:
    """Return the peak memory of this process in GiB: on the GPU if there is one, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
