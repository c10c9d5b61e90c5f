"""PyTorch 2.13: tensors without memory, and distributed checkpoints on any fsspec file system."""

from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint._fsspec_filesystem import FileSystem
from torch.distributed.checkpoint.filesystem import _StorageInfo as StorageInfo

__all__ = ["FakeTensorMode", "FileSystem", "StorageInfo"]
