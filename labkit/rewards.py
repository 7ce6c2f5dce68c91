"""Reward models: a language model whose last hidden state at the end of an answer becomes one number.

    r(x, y) = w . h_T(x, y),   T: the last token of prompt x and answer y in the model's chat format

Made from a language model (`from_language_model`), trained by stages/reward, read back by `load` and called by whoever
wants scores. The scale is Bradley and Terry's (1952): sigmoid(r_1 - r_2) is the chance that answer 1 is preferred.
"""

import dataclasses
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Lfm2Config
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.lfm2.modeling_lfm2 import Lfm2PreTrainedModel

from labkit import adapters, data, models, runs
from labkit.errors import ModelError


class Lfm2ForSequenceClassification(GenericForSequenceClassification, Lfm2PreTrainedModel):
    """What transformers has for Llama and others and not for LFM2: the backbone and a linear layer `score`."""


AutoModelForSequenceClassification.register(Lfm2Config, Lfm2ForSequenceClassification, exist_ok=True)


class Score(torch.nn.Linear):
    """The head: in fp32 under autocast too, for bf16 would round a reward near 5 to steps of 0.03 and make ties."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.nn.functional.linear(hidden.float(), self.weight.float())


@dataclasses.dataclass
class RewardModel:
    """A trained reward model. `rewards(prompts, answers)` gives one score for each answer, (rows,) in fp32 on the CPU.

    prompts: texts, or lists of messages where there is more than one turn. Scores may be compared between answers to
    the same prompt; no zero point is fixed by the pairs.
    """

    model: torch.nn.Module
    tokenizer: transformers.PreTrainedTokenizerBase
    batch_size: int = 128

    @torch.no_grad()
    def __call__(self, prompts: list, answers: list[str]) -> torch.Tensor:
        self.model.eval()
        rows = encode(self.tokenizer, prompts, answers, context(self.model))
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))  # like lengths together: less padding
        scores = torch.zeros(len(rows))
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            ids = {"input_ids": [rows[place] for place in places]}
            batch = self.tokenizer.pad(ids, return_tensors="pt", padding_side="right")  # as in training
            with models.autocast():
                logits = self.model(**batch.to(self.model.device), use_cache=False).logits
            scores[places] = logits[:, 0].float().cpu()
        return scores


def encode(tokenizer, prompts: list[str | list[dict]], answers: list[str], max_length: int) -> list[list[int]]:
    """The tokens of each prompt (a text or messages) and its answer in chat format, cut after max_length tokens."""
    said = [data.messages(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    said = [[*turns, {"role": "assistant", "content": answer}] for turns, answer in zip(said, answers, strict=True)]
    rows = data.templated(tokenizer, said) if said else []
    return [row[:max_length] for row in rows]


def context(model) -> int:
    """The most tokens of prompt and answer that are read."""
    return min(1024, models.context(model))


def from_language_model(source: str | Path, **options) -> tuple[torch.nn.Module, transformers.PreTrainedTokenizerBase]:
    """(model, tokenizer): what `models.load(source, **options)` gives, its output head replaced by one number's.

    The new head starts at 0: every answer gets the same score, and the loss starts at log 2. The old one is at hand as
    model.output_head[0], in a tuple, so that the model does not save it. Raises ModelError.
    """
    language_model, tokenizer = models.load(source, **options)
    output_head = language_model.get_output_embeddings()
    if adapters.is_peft(language_model):
        language_model = language_model.get_base_model()  # its adapter stays in the layers
    config = language_model.config
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    try:
        with torch.device("meta"):  # only for its form
            model = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        remedy = "Take a model that transformers can make a sequence classifier of, such as a Llama or an LFM2."
        raise ModelError("model must have a form with a score", got=str(source), remedy=remedy) from error
    setattr(model, model.base_model_prefix, language_model.base_model)
    model.score = Score(model.score.in_features, 1, bias=False, device=language_model.device)
    torch.nn.init.zeros_(model.score.weight)
    if output_head.weight is not language_model.get_input_embeddings().weight:
        output_head.requires_grad_(False)  # on its device: no trainer moves what the model does not hold
    model.output_head = (output_head,)
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized", "hf_quantizer", "quantization_method"):
        if hasattr(language_model, name):
            setattr(model, name, getattr(language_model, name))
    return model, tokenizer


def load(source: runs.Run | str | Path) -> RewardModel:
    """The reward model of a run, a run's id, a folder or a Hub id. Raises ModelError for what gives no single score."""
    if isinstance(source, str) and source.startswith("reward-") and not Path(source).exists():
        source = runs.get(source)
    source = source.checkpoint if isinstance(source, runs.Run) else source
    models.quiet()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        if adapters.is_adapter(source):
            from peft import PeftModel

            base, bits = adapters.base_of(source)
            model, _ = from_language_model(base, quantization=bits)
            model = PeftModel.from_pretrained(model, source)
            model = model.merge_and_unload() if bits == "none" else model
        else:
            config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
            if (
                not str((config.architectures or [""])[0]).endswith("ForSequenceClassification")
                or config.num_labels != 1
            ):
                raise ValueError("no single score")
            form = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}
            form["output_loading_info"] = True
            model, found = AutoModelForSequenceClassification.from_pretrained(source, **form)
            if found["missing_keys"] or not hasattr(model, "score"):
                raise ValueError("no `score` at the end of a language model")
            head = Score(model.score.in_features, 1, bias=False)
            head.weight = model.score.weight
            model.score = head
    except (OSError, ValueError) as error:
        remedy = "Name a finished run of the stage reward, its folder, or a sequence classifier with one label."
        raise ModelError("reward model cannot be loaded", got=str(source), remedy=remedy) from error
    if tokenizer.pad_token is None and model.config.pad_token_id is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.config.pad_token_id)
    models.give_padding(tokenizer)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return RewardModel(model.to(models.device()).eval(), tokenizer)
