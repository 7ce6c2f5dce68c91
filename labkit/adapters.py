"""Adapters: train a low-rank update beside frozen weights (LoRA, Hu et al. 2021).

W x  becomes  W x + (lora_alpha / lora_rank) B A x,   A: (lora_rank, in), B: (out, lora_rank), B = 0 at the start

The rows of chat tokens that the base was never taught train beside it: no update of the layers could say them.
"""

import json
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

import torch
from transformers import Conv1D

from labkit import data, models
from labkit.config import TuningConfig
from labkit.errors import ConfigError


def linears(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The model's linear layers (GPT-2's are of type Conv1D) by their full names, the output head left out."""
    head = model.get_output_embeddings() or getattr(model, "score", None)
    kinds = torch.nn.Linear, Conv1D
    return {name: part for name, part in model.named_modules() if isinstance(part, kinds) and part is not head}


def linear_names(layers: Iterable[str]) -> list[str]:
    """Last names of layers ("q_proj", ...), each once: what `target_modules` may name."""
    return sorted({name.rpartition(".")[2] for name in layers})


def adapted(target_modules: str | Iterable[str], layers: Iterable[str]) -> list[str]:
    """Which of the layers get an adapter, by peft's rule: "all-linear", or each name or end of a name.

    The output head is none of them: where it is the embedding too, an adapter would change one use of it alone. Raises
    ConfigError for a name that no layer has.
    """
    layers = list(layers)
    if target_modules == "all-linear":
        return layers
    names = target_modules.split(",") if isinstance(target_modules, str) else map(str, target_modules)
    wanted, known = [name.strip() for name in names if name.strip()] or [""], linear_names(layers)
    for name in wanted:
        if not any(f".{layer}".endswith(f".{name}") for layer in layers):
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]}? " if near else ""
            what = "target_modules must name linear layers of the model"
            raise ConfigError(what, got=name, remedy=f"{hint}Known: all-linear, {', '.join(known)}.")
    return [layer for layer in layers if f".{layer}".endswith(tuple(f".{name}" for name in wanted))]


def targets(model: torch.nn.Module, names: str) -> str | list[str]:
    """peft's target_modules from the parameter's text. Raises ConfigError for a name that no linear layer has."""
    adapted(names, linears(model))
    return names if names == "all-linear" else [name.strip() for name in names.split(",") if name.strip()]


def untaught(model: torch.nn.Module, tokenizer) -> list[int]:
    """Ids of the chat template's tokens that the model was never taught, [] where it knows its template.

    Learning pushes every token that is never the next one in one and the same direction, away from what is. So in tied
    embeddings the rows of such tokens are parallel to the padding's, which no training aims at (cosine above 0.999).
    """
    tied = model.config.get_text_config().tie_word_embeddings
    if not tied or not tokenizer.chat_template or tokenizer.pad_token_id == tokenizer.eos_token_id:
        return []
    chat = data.templated(tokenizer, data.messages("?", "!"))
    special = sorted(set(chat) & set(tokenizer.added_tokens_decoder) - {tokenizer.pad_token_id})
    rows = model.get_input_embeddings().weight.detach().float()
    alike = torch.nn.functional.cosine_similarity(rows[special], rows[tokenizer.pad_token_id], dim=-1)
    return [token for token, close in zip(special, (alike > 0.999).tolist(), strict=True) if close]


def attach(model: torch.nn.Module, config: TuningConfig, tokenizer) -> torch.nn.Module:
    """The model as `config.tuning` wants it: itself, every weight training, or with an adapter that alone trains.

    Beside the adapter train the rows of the chat tokens that are `untaught`.
    """
    if config.tuning == "full":
        return model
    from peft import LoraConfig, get_peft_model

    # peft's prepare_model_for_kbit_training is left out: it turns what is not quantized, and with it every hidden
    # state, into fp32, so that training on 4 bits took more memory than on 16
    torch.manual_seed(config.seed)
    adapter = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        use_rslora=config.lora_variant == "rslora",
        use_dora=config.lora_variant == "dora",
        target_modules=targets(model, config.target_modules),
        fan_in_fan_out=any(isinstance(part, Conv1D) for part in linears(model).values()),  # its weights are (in, out)
        trainable_token_indices=untaught(model, tokenizer) or None,
        task_type="SEQ_CLS" if hasattr(model, "score") else "CAUSAL_LM",  # a reward model's score trains whole
    )
    try:
        model = get_peft_model(model, adapter)
    except ValueError as error:  # of layers whose kernels pass an adapter by, such as Mamba's out_proj
        remedy = f"Name others: {', '.join(linear_names(linears(model)))}."
        what = f"target_modules must be layers that can have an adapter ({' '.join(str(error).split())[:200]})"
        raise ConfigError(what, got=config.target_modules, remedy=remedy) from error
    head = model.get_base_model().get_output_embeddings()
    if head is not None and not hasattr(head, "bias"):  # peft's wrapper of rows that train; trl's losses ask for it
        head.bias = None
    # autocast takes bf16 inputs as they are: peft's detour by fp32 costs a tenth of a step
    for part in model.modules():
        if models.bf16() and hasattr(part, "cast_input_dtype_enabled"):
            part.cast_input_dtype_enabled = False
    return model


def is_peft(model) -> bool:
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def is_adapter(folder: str | Path) -> bool:
    return (Path(folder) / "adapter_config.json").is_file()


def base_of(folder: str | Path) -> tuple[str, str]:
    """(the model that an adapter was trained on, the bits it was loaded in: "none" where the lab did not train it)."""
    about = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    bits = Path(folder) / "quantization.txt"
    return about["base_model_name_or_path"], bits.read_text().strip() if bits.is_file() else "none"


def save(model, folder: Path, base: str, quantization: str) -> None:
    """Write the adapter alone (safetensors), with the name of its base; beside it the bits that base was loaded in."""
    for name in set(model.peft_config) - {"default"}:  # trl's copy of the start, its reference
        model.delete_adapter(name)
    model.save_pretrained(folder)
    file = folder / "adapter_config.json"
    about = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**about, "base_model_name_or_path": base}, indent=2) + "\n", encoding="utf-8")
    (folder / "quantization.txt").write_text(quantization + "\n")
