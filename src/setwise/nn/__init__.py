"""Attention over sets of samples: plain torch modules that know nothing of trainers, recipes or files."""

from setwise.nn import functional, streams
from setwise.nn.attention import record_attention
from setwise.nn.attention_pool import AttentionPool, PerClassLinear
from setwise.nn.auditing import audit
from setwise.nn.batchformer import BatchFormer, BatchFormerV2
from setwise.nn.cross_transformer import CrossTransformer
from setwise.nn.experts import ExpertBatchFormer
from setwise.nn.insertion import attention_pooling, insert, remove
from setwise.nn.meta_sampler import MetaSampler
from setwise.nn.micro_batch import in_micro_batches
from setwise.nn.momentum import Compared, KeyQueue, MomentumContrast, follow
from setwise.nn.pool_maps import PoolMaps, pool_maps
from setwise.nn.prototypical import Prototypical

__all__ = [
    "AttentionPool",
    "BatchFormer",
    "BatchFormerV2",
    "Compared",
    "CrossTransformer",
    "ExpertBatchFormer",
    "KeyQueue",
    "MetaSampler",
    "MomentumContrast",
    "PerClassLinear",
    "PoolMaps",
    "Prototypical",
    "attention_pooling",
    "audit",
    "follow",
    "functional",
    "in_micro_batches",
    "insert",
    "pool_maps",
    "record_attention",
    "remove",
    "streams",
]
