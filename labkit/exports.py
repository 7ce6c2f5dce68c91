"""What leaves the lab: a run's weights in a folder that plain transformers and peft open, and the code that opens it.

    whole model    copied as it is
    adapter        copied, with its base beside it in base/ unless that is a model of the Hub. A base that is itself an
                   adapter on another is merged: peft has one adapter beneath a model, and would drop the first one
    merged         an adapter's change added to its base's weights: one whole model, in fp32

The code computes in fp32, as the lab does, on quantized weights as the adapter was trained on.
"""

import json
import re
import shutil
import types
from pathlib import Path

import transformers

from labkit import adapters, fetch, models
from labkit.errors import RunError
from labkit.runs import Run

# The architectures that llama.cpp's convert_hf_to_gguf.py names and the lab has seen; it was not run here.
GGUF = ("Gemma2", "Gemma3", "GPT2", "Granite", "Lfm2", "Llama", "Mistral", "Phi3", "Qwen2", "Qwen3", "SmolLM3")

LFM2 = """from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.lfm2.modeling_lfm2 import Lfm2Config, Lfm2PreTrainedModel


class Lfm2ForSequenceClassification(GenericForSequenceClassification, Lfm2PreTrainedModel):
    pass  # transformers has this form for other models and not for LFM2


AutoModelForSequenceClassification.register(Lfm2Config, Lfm2ForSequenceClassification, exist_ok=True)
"""
ANSWER = """messages = [{"role": "user", "content": "What is the capital of France?"}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, enable_thinking=False, return_tensors="pt", return_dict=True
)"""
CONTINUE = """inputs = tokenizer("The capital of France is", add_special_tokens=False, return_tensors="pt")"""
GENERATE = """settings = GenerationConfig.from_pretrained(folder)  # greedy, and the tokens that end an answer
tokens = model.generate(**inputs.to(model.device), generation_config=settings, max_new_tokens=64)
print(tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""
SCORE = """messages = [{"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "2 + 3 is 5."}]
inputs = tokenizer.apply_chat_template(messages, enable_thinking=False, return_tensors="pt", return_dict=True)
with torch.no_grad():
    score = model(**inputs.to(model.device)).logits[0, 0].item()
print(score)  # higher is better, between answers to one prompt"""


def is_reward(folder: Path) -> bool:
    """Whether what was saved in the folder gives a score: a whole reward model, or an adapter with such a head."""
    for name in ("config.json", "adapter_config.json"):
        about = json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).is_file() else {}
        if about.get("task_type") == "SEQ_CLS" or "SequenceClassification" in str(about.get("architectures")):
            return True
    return False


def write(run: Run, folder: Path, merged: bool) -> None:
    """Write the run's model, its tokenizer and how it ends an answer into the folder.

    Raises RunError where an adapter's base is gone.
    """
    if merged and adapters.is_adapter(run.checkpoint):
        for part in whole(run):
            part.save_pretrained(folder)
    else:
        shutil.copytree(run.checkpoint, folder, dirs_exist_ok=True)
    base: str | Path = folder
    if adapters.is_adapter(folder):
        base = adapters.base_of(folder)[0]
        base = base if of_hub(base) else bring_base(base, folder, run.config["seed"])
    if not is_reward(run.checkpoint) and (folder / "tokenizer_config.json").is_file():
        write_endings(folder, base)


def write_endings(folder: Path, base: str | Path) -> None:
    """generation_config.json: the likeliest token each time, until one that ends an answer in the lab."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    try:
        known = transformers.GenerationConfig.from_pretrained(base)
    except OSError:  # it has none
        known = transformers.GenerationConfig()
    ends = sorted(models.stops(types.SimpleNamespace(generation_config=known), tokenizer))
    own = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    transformers.GenerationConfig(eos_token_id=ends, do_sample=False, **own).save_pretrained(folder)


def of_hub(base: str) -> bool:
    """Whether an adapter's base is a repository of the Hub, which whoever opens the export can fetch."""
    return base not in ("smoke", "nano", "smol") and not Path(base).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", base)


def bring_base(base: str, folder: Path, seed: int) -> Path:
    """Write an adapter's base to folder/base, which is returned and named in its config. Raises RunError."""
    source = Path(fetch.resolve(base))
    if source.is_dir() and not adapters.is_adapter(source):
        shutil.copytree(source, folder / "base")
    elif source.is_dir() or base == "smoke":
        for part in models.load(base, seed=seed):
            part.save_pretrained(folder / "base")
    else:
        remedy = "Bring that folder back, or train the run that it held again."
        raise RunError("the adapter's base must be there to be exported", got=base, remedy=remedy)
    file = folder / "adapter_config.json"
    about = json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": str(folder / "base")}
    file.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return folder / "base"


def whole(run: Run):
    """(model, tokenizer) of an adapter's run with the adapter merged into its base's weights, in fp32.

    Quantized weights become the numbers that they stand for first: merged into them, the sum would be rounded anew.
    """
    from peft import PeftModel

    from labkit import rewards

    base, bits = adapters.base_of(run.checkpoint)
    if bits == "none":
        if is_reward(run.checkpoint):
            scorer = rewards.load(run)
            return scorer.model, scorer.tokenizer
        return models.load(run.checkpoint)
    load = rewards.from_language_model if is_reward(run.checkpoint) else models.load
    model, _ = load(base, quantization=bits)
    model = PeftModel.from_pretrained(model.dequantize().float(), run.checkpoint).merge_and_unload()
    return model, transformers.AutoTokenizer.from_pretrained(run.checkpoint, trust_remote_code=False)


def code(run: Run, folder: str | Path = "FOLDER", merged: bool = False) -> str:
    """The lines of Python that open the exported folder with plain transformers and peft, and use it."""
    saved = run.checkpoint
    adapter, reward = adapters.is_adapter(saved) and not merged, is_reward(saved)
    kind = "AutoModelForSequenceClassification" if reward else "AutoModelForCausalLM"
    base, bits = adapters.base_of(saved) if adapter else ("", "none")
    names = [kind, "AutoTokenizer"] + ([] if reward else ["GenerationConfig"])
    names += ["BitsAndBytesConfig"] if bits != "none" else []
    lines = ["import torch", *(["from peft import PeftModel"] if adapter else [])]
    lines += [f"from transformers import {', '.join(sorted(names))}", *([LFM2] if reward and is_lfm2(run) else [])]
    lines += [f"folder = {str(folder)!r}  # or the name under which you publish it"]
    options = ["num_labels=1"] if reward else []
    if bits == "none":
        options += ["dtype=torch.float32"]  # the lab computes so
    else:
        compute = "torch.bfloat16" if models.bf16() else "torch.float32"
        form = {"4bit": 'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, '}
        form = form.get(bits, "load_in_8bit=True, ") + f"bnb_4bit_compute_dtype={compute}"
        form += ', llm_int8_skip_modules=["score"]' if reward else ""
        lines += [f"bits = BitsAndBytesConfig({form})  # the adapter was trained on weights of this form"]
        options += ["quantization_config=bits", f"dtype={compute}", f'device_map={{"": "{models.device()}"}}']
    source = "folder" if not adapter else repr(base) if of_hub(base) else 'folder + "/base"'
    lines += ["tokenizer = AutoTokenizer.from_pretrained(folder)"]
    lines += [f"model = {kind}.from_pretrained({source}, {', '.join(options)})"]
    lines += ["model.config.pad_token_id = tokenizer.pad_token_id"] if reward else []
    lines += ["model = PeftModel.from_pretrained(model, folder)"] if adapter else []
    lines += ["model.eval()\n"]
    return "\n".join(lines) + "\n" + (SCORE if reward else f"{ANSWER if chats(saved) else CONTINUE}\n{GENERATE}")


def chats(folder: Path) -> bool:
    """Whether the tokenizer saved there has a chat template."""
    file = folder / "tokenizer_config.json"
    inside = file.is_file() and "chat_template" in json.loads(file.read_text(encoding="utf-8"))
    return inside or (folder / "chat_template.jinja").is_file()


def architecture(run: Run) -> str:
    """The model's form by the name in its config.json, or its base's: "LlamaForCausalLM" say; "" where none tells."""
    folder = run.checkpoint
    while adapters.is_adapter(folder):
        base = adapters.base_of(folder)[0]
        if base == "smoke":
            return "Lfm2ForCausalLM"
        if of_hub(base):
            return (transformers.AutoConfig.from_pretrained(base).architectures or [""])[0]
        folder = Path(fetch.resolve(base))
    file = folder / "config.json"
    return ((json.loads(file.read_text(encoding="utf-8")).get("architectures") or [""]) if file.is_file() else [""])[0]


def is_lfm2(run: Run) -> bool:
    return architecture(run).startswith("Lfm2")


def gguf(run: Run) -> str:
    """A sentence on llama.cpp, which runs models on small machines from files of its own form."""
    form = architecture(run)
    if is_reward(run.checkpoint) or form.removesuffix("ForCausalLM") not in GGUF:
        return f"llama.cpp's converter to GGUF has no form for it ({form or 'unknown'})."
    how = "Export it merged, and run" if adapters.is_adapter(run.checkpoint) else "Run"
    return (
        f"{how} llama.cpp's `convert_hf_to_gguf.py` on the folder for a GGUF file; its list has {form}. Not tried here."
    )
