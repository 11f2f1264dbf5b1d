"""Block-sparse attention in the models of Hugging Face transformers 5 (extra ``transformers``)."""

try:
    from transformers import AttentionInterface as AttentionInterface
    from transformers import AttentionMaskInterface as AttentionMaskInterface
except ImportError as error:
    raise ImportError(
        "dilated_attention_pytorch.integrations.transformers needs transformers 5: pip install 'transformers>=5'"
    ) from error

from .register import register_block_sparse_attention

__all__ = ["register_block_sparse_attention"]
