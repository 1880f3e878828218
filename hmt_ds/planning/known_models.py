"""Configurations of well-known models by their names on the hub, so that runs can be estimated without a download."""

from typing import Any

# Only sizes: what else a configuration holds does not change the estimates.
KEYS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def llama_like(
    kind: str, vocabulary: int, width: int, mlp: int, layers: int, heads: int, kv_heads: int, **others: object
) -> dict[str, Any]:
    """Return a transformers model configuration with Llama's keys, which most families share.

    Args:
        kind: ``model_type``.
        vocabulary: number of token ids.
        width: hidden size.
        mlp: width of the MLP.
        layers: number of decoder layers.
        heads, kv_heads: number of query heads, and of key and value heads.
        others: further keys of the configuration.
    """
    sizes = dict(zip(KEYS, (vocabulary, width, mlp, layers, heads), strict=True))
    return {"model_type": kind, **sizes, "num_key_value_heads": kv_heads, "tie_word_embeddings": False, **others}


def opt(width: int, layers: int, heads: int, **others: object) -> dict[str, Any]:
    """Return a configuration of OPT, by transformers' keys; its MLP is four times as wide as the hidden states.

    Args:
        width: hidden size.
        layers: number of decoder layers.
        heads: number of attention heads.
        others: further keys of the configuration.
    """
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "ffn_dim": 4 * width}
    return {"model_type": "opt", "vocab_size": 50272, "word_embed_proj_dim": width, **sizes, **others}


TIED = {"tie_word_embeddings": True}
KNOWN_MODELS: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-2-7b-hf": llama_like("llama", 32000, 4096, 11008, 32, 32, 32),
    "meta-llama/Llama-2-13b-hf": llama_like("llama", 32000, 5120, 13824, 40, 40, 40),
    "meta-llama/Llama-2-70b-hf": llama_like("llama", 32000, 8192, 28672, 80, 64, 8),
    "meta-llama/Llama-3.2-1B": llama_like("llama", 128256, 2048, 8192, 16, 32, 8, **TIED),
    "meta-llama/Llama-3.2-3B": llama_like("llama", 128256, 3072, 8192, 28, 24, 8, **TIED),
    "meta-llama/Llama-3.1-8B": llama_like("llama", 128256, 4096, 14336, 32, 32, 8),
    "meta-llama/Llama-3.1-70B": llama_like("llama", 128256, 8192, 28672, 80, 64, 8),
    "meta-llama/Llama-3.1-405B": llama_like("llama", 128256, 16384, 53248, 126, 128, 8),
    "TinyLlama/TinyLlama_v1.1": llama_like("llama", 32000, 2048, 5632, 22, 32, 4),
    "openlm-research/open_llama_3b_v2": llama_like("llama", 32000, 3200, 8640, 26, 32, 32),
    "01-ai/Yi-6B": llama_like("llama", 64000, 4096, 11008, 32, 32, 4),
    "01-ai/Yi-34B": llama_like("llama", 64000, 7168, 20480, 60, 56, 8),
    "HuggingFaceTB/SmolLM2-135M": llama_like("llama", 49152, 576, 1536, 30, 9, 3, **TIED),
    "HuggingFaceTB/SmolLM2-360M": llama_like("llama", 49152, 960, 2560, 32, 15, 5, **TIED),
    "HuggingFaceTB/SmolLM2-1.7B": llama_like("llama", 49152, 2048, 8192, 24, 32, 32, **TIED),
    "mistralai/Mistral-7B-v0.1": llama_like("mistral", 32000, 4096, 14336, 32, 32, 8),
    "Qwen/Qwen2.5-0.5B": llama_like("qwen2", 151936, 896, 4864, 24, 14, 2, **TIED),
    "Qwen/Qwen2.5-1.5B": llama_like("qwen2", 151936, 1536, 8960, 28, 12, 2, **TIED),
    "Qwen/Qwen2.5-7B": llama_like("qwen2", 152064, 3584, 18944, 28, 28, 4),
    "Qwen/Qwen2.5-14B": llama_like("qwen2", 152064, 5120, 13824, 48, 40, 8),
    "Qwen/Qwen2.5-32B": llama_like("qwen2", 152064, 5120, 27648, 64, 40, 8),
    "Qwen/Qwen2.5-72B": llama_like("qwen2", 152064, 8192, 29568, 80, 64, 8),
    "Qwen/Qwen3-8B-Base": llama_like("qwen3", 151936, 4096, 12288, 36, 32, 8, head_dim=128),
    "google/gemma-2-2b": llama_like("gemma2", 256000, 2304, 9216, 26, 8, 4, head_dim=256, **TIED),
    "google/gemma-2-9b": llama_like("gemma2", 256000, 3584, 14336, 42, 16, 8, head_dim=256, **TIED),
    "facebook/opt-350m": opt(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
    "facebook/opt-1.3b": opt(2048, 24, 32),
    "facebook/opt-2.7b": opt(2560, 32, 32),
    "facebook/opt-6.7b": opt(4096, 32, 32),
    "openai-community/gpt2": {"model_type": "gpt2"},
    "EleutherAI/pythia-1b": {
        "model_type": "gpt_neox",
        **dict(zip(KEYS, (50304, 2048, 8192, 16, 8), strict=True)),
        "tie_word_embeddings": False,
    },
    "state-spaces/mamba-370m-hf": {
        "model_type": "mamba",
        "vocab_size": 50280,
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "num_hidden_layers": 48,
    },
    "RWKV/rwkv-4-3b-pile": {
        "model_type": "rwkv",
        "vocab_size": 50277,
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "attention_hidden_size": 2560,
        "num_hidden_layers": 32,
    },
}


def known_model(name: str) -> str | None:
    """Return the full name of a known model, such as ``meta-llama/Llama-2-7b-hf``; None if it is unknown.

    Args:
        name: the full name, or its part after the slash; upper and lower case are alike.
    """
    wanted = name.lower()
    return next((full for full in KNOWN_MODELS if wanted in (full.lower(), full.lower().partition("/")[2])), None)
