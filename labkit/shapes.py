"""The shape of a model: what its sizes, in weights and in activations, follow from, read off its configuration alone.

Numbers of weights are exact: the model is built on torch's meta device, without numbers.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Conv1D, PretrainedConfig

from labkit import adapters, data, fetch, models
from labkit.errors import LabError, ModelError


@dataclass(frozen=True)
class Shape:
    """What a model's sizes follow from; every count is one of numbers (weights, activations), never of bytes."""

    parameters: int  # tied weights once
    linears: tuple[tuple[str, int, int], ...]  # (name, in, out) of every Linear (GPT-2: Conv1D) but the head
    head: int  # weights of the output head; 0 where it is the embedding
    embedding: int  # weights that are only looked up; none where the output head is the embedding
    matrices: int  # weights that the lab's Muon takes
    largest: int  # weights of the largest tensor
    vocab: int
    hidden: int
    layers: int
    heads: int
    attention: int  # heads * head_dim
    cache: int  # keys and values of a token, over all layers, that generation keeps
    attending: int  # layers with attention
    written_out: bool  # their attention has no fused form, such as Gemma 2's: its scores are kept
    norms: tuple[int, int]  # how many LayerNorms, and how many others (RMSNorm)
    between: int  # kept per token between Linears: SwiGLU's gate, convolutions, experts


def shape(source: str | Path | PretrainedConfig) -> Shape:
    """The shape of a config, or of what `models.load` takes, from its config.json alone. Raises ModelError."""
    models.quiet()
    try:
        if not isinstance(source, PretrainedConfig):
            smoke = str(source) == "smoke"
            source = AutoConfig.from_pretrained(folder(source), trust_remote_code=False)
            source = models.nano_config(source.vocab_size, hidden_size=64, layers=2, heads=2) if smoke else source
        with torch.device("meta"):  # modules and sizes without numbers: a tenth of a second for 65B weights
            model = AutoModelForCausalLM.from_config(source)
    except LabError:
        raise
    except Exception as error:  # a config.json may hold anything, and each fault has an error of its own
        remedy = 'Name "nano", a folder with the config.json of a causal language model, or a Hub id (needs a network).'
        what = f"model has no usable configuration: {' '.join(str(error).split())[:300]}"
        raise ModelError(what, got=str(source), remedy=remedy) from error
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    modules, weights = dict(model.named_modules()), dict(model.named_parameters())
    sizes = {name: (part, part.weight.shape) for name, part in adapters.linears(model).items()}
    linears = [(n, *(size if isinstance(part, Conv1D) else size[::-1])) for n, (part, size) in sizes.items()]
    norms = [m for m in modules.values() if "Norm" in type(m).__name__ and getattr(m, "weight", None) is not None]
    layer_norms = sum(isinstance(norm, torch.nn.LayerNorm) for norm in norms)
    tables = [m for m in modules.values() if isinstance(m, torch.nn.Embedding)]
    heads = getattr(config, "num_attention_heads", None) or 1
    attention = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    attending = len({name.rpartition(".")[0] for name, *_ in linears if "att" in name})
    # of one fused projection keys and values are counted as if no heads shared them
    apart = [out for name, _, out in linears if name.rpartition(".")[2] in ("k_proj", "v_proj")]
    tied = any(getattr(head, "weight", None) is table.weight for table in tables)
    return Shape(
        parameters=models.weights(model)["parameters"],
        linears=tuple(linears), head=0 if tied or head is None else head.weight.numel(),
        embedding=sum(m.weight.numel() for m in tables if m.weight is not getattr(head, "weight", None)),
        matrices=sum(part.weight.numel() for part, _ in sizes.values()),
        largest=max(weight.numel() for weight in weights.values()),
        vocab=config.vocab_size, hidden=config.hidden_size, layers=config.num_hidden_layers,
        heads=heads,
        attending=attending,
        written_out=not getattr(model, "_supports_sdpa", True),
        attention=attention,
        cache=sum(apart) or 2 * attending * attention,
        norms=(layer_norms, len(norms) - layer_norms), between=_between(config, linears, modules, weights),
    )  # fmt: skip


def folder(source: str | Path) -> str | Path:
    """Where the config and the tokenizer lie of what `models.load` takes."""
    return data.BASE if str(source) == "smoke" else fetch.resolve(source)


def _between(config, linears: list, modules: dict, weights: dict) -> int:
    """Numbers per token, over all layers, that autograd keeps beside inputs and outputs of Linears."""
    total, groups = 0, {}
    for name, *sizes in linears:
        groups.setdefault(name.rpartition(".")[0], []).append(sizes)
    for parent, sizes in groups.items():
        down = next((wide for wide, out in reversed(sizes) if out == config.hidden_size), 0)
        up = 0 if "att" in parent else sum(out for _, out in sizes) - config.hidden_size
        written_out = getattr(config, "activation_function", "") == "gelu_new"  # six operations instead of one
        total += down * (1 if up == 2 * down else 3 if up == down and written_out else 0)  # 1: SwiGLU, other gates
    # a convolution's input and output are both products; an expert keeps a token's copy, gate, up, SwiGLU and answer
    total += sum(2 * module.out_channels for module in modules.values() if isinstance(module, torch.nn.Conv1d))
    experts = [weight[0].numel() for name, weight in weights.items() if weight.ndim == 3 and "down_proj" in name]
    chosen, hidden = getattr(config, "num_experts_per_tok", 1), config.hidden_size
    return total + chosen * sum(2 * hidden + 4 * size // hidden for size in experts)


def adapted(shape: Shape, target_modules: str | Iterable[str]) -> list[tuple[str, int, int]]:
    """The Linears that LoRA adapts, as `adapters.adapted` chooses them. Raises ConfigError for one not there."""
    every = {line[0]: line for line in shape.linears}
    return [every[name] for name in adapters.adapted(target_modules, every)]
