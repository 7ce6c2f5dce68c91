"""Adapters: train a low-rank update beside frozen weights (LoRA, Hu et al. 2021).

W x  becomes  W x + (lora_alpha / lora_rank) B A x,   A: (lora_rank, in), B: (out, lora_rank), B = 0 at the start

The rows of chat tokens that the base was never taught train beside it: no update of the layers could say them.
"""

import json
from difflib import get_close_matches
from pathlib import Path

import torch

from labkit import data, models
from labkit.config import TuningConfig
from labkit.errors import ConfigError


def linear_names(model: torch.nn.Module) -> list[str]:
    """Last names of the model's linear layers ("q_proj", ...), the output head left out."""
    head = model.get_output_embeddings() or getattr(model, "score", None)
    layers = (name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear) and part is not head)
    return sorted({name.rsplit(".", 1)[-1] for name in layers})


def targets(model: torch.nn.Module, names: str) -> str | list[str]:
    """peft's target_modules from the parameter's text. Raises ConfigError for a name that no linear layer has."""
    if names == "all-linear":
        return names
    known, wanted = linear_names(model), [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted or [""]:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            what = "target_modules must name linear layers of the model"
            raise ConfigError(what, got=name, remedy=f"{hint}Known: all-linear, {', '.join(known)}.")
    return wanted


def untaught(model: torch.nn.Module, tokenizer) -> list[int]:
    """Ids of the chat template's tokens that the model was never taught, [] where it knows its template.

    Learning pushes every token that is never the next one in one and the same direction, away from what is. So in tied
    embeddings the rows of such tokens are parallel to the padding's, which no training aims at (cosine above 0.999).
    """
    if not model.config.tie_word_embeddings or tokenizer.pad_token_id == tokenizer.eos_token_id:
        return []
    chat = tokenizer.apply_chat_template(data.messages("?", "!"), return_dict=True)["input_ids"]
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
        trainable_token_indices=untaught(model, tokenizer) or None,
        task_type="SEQ_CLS" if hasattr(model, "score") else "CAUSAL_LM",  # a reward model's score trains whole
    )
    model = get_peft_model(model, adapter)
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
    model.save_pretrained(folder)
    file = folder / "adapter_config.json"
    about = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**about, "base_model_name_or_path": base}, indent=2) + "\n", encoding="utf-8")
    (folder / "quantization.txt").write_text(quantization + "\n")
