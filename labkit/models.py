"""Models: the tokenizer and architecture of `nano`, loading from anywhere, and the device's number formats.

`nano` is an LFM2 of about four million weights: short convolutions over three tokens take turns with attention
(normalised queries and keys, rotary positions), each followed by SwiGLU. A convolution hands attention the previous
token, half of what copying needs (Olsson et al. 2022, In-context learning and induction heads), so a small model learns
more from the same tokens. transformers ships it: `AutoModelForCausalLM.from_pretrained` opens a checkpoint anywhere.
"""

import contextlib
import ctypes
import functools
import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import datasets
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, Lfm2Config, PreTrainedTokenizerFast

from labkit.errors import LabError, ModelError

QUANTIZES = ("cpu", "cuda", "xpu")  # devices that bitsandbytes has kernels for
SHORT = 256  # tokens of a row: up to here, attention written out in plain products trains faster on a CPU

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels that only 4-bit models would use

END_OF_TEXT, PAD, USER, ASSISTANT, END_OF_TURN = "<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL = [END_OF_TEXT, PAD, USER, ASSISTANT, END_OF_TURN]  # their places are their token ids

# Text is cut here before byte-pair merges are learned. A capital letter that no small letter follows stands alone, as
# every digit does: "RIVER" is spelled letter by letter and "42" digit by digit, to be computed rather than memorised.
WORD = r"'(?:s|t|re|ve|m|ll|d)| ?\p{Lu}(?!\p{Ll})| ?\p{L}\p{Ll}*| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# A blank opens every turn, so that a word is the same token in a question, in an answer and in running text.
CHAT_TEMPLATE = """\
{%- if tools %}{{ 'Tools: ' + (tools | tojson) + '\\n' }}{% endif %}
{%- for message in messages %}
{%- if message['role'] == 'assistant' %}
{%- set calls = ' ' + (message['tool_calls'] | tojson) if message['tool_calls'] else '' %}
{{- '<|assistant|>' }}{% generation %}{{ ' ' + message['content'] + calls + '<|end|>' }}{% endgeneration %}
{%- elif message['role'] == 'user' %}
{{- '<|user|> ' + message['content'] }}
{%- elif message['role'] in ['system', 'tool'] %}
{{- message['role'] | capitalize + ': ' + message['content'] + '\\n' }}
{%- else %}
{{- raise_exception('no form for the role ' + message['role']) }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""


def quiet() -> None:
    """Silence what a reader can do nothing about: missing fast kernels, renamed options, bars for work of seconds."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing` is deprecated", category=FutureWarning)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE (Sennrich et al. 2016) with the lab's five special tokens and its chat template."""
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(WORD), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TURN,  # the end of an answer, and never the same token as the padding
        pad_token=PAD,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def nano_config(vocab_size: int, *, hidden_size: int, layers: int, heads: int) -> Lfm2Config:
    """The architecture of `nano`, for the lab's tokenizer."""
    width = 32 * round(hidden_size * 8 / 3 / 32 + 0.4)  # SwiGLU's three matrices weigh as two of 4 x hidden_size
    return Lfm2Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=width,
        block_ff_dim=width,
        block_auto_adjust_ff_dim=False,
        num_hidden_layers=layers,
        layer_types=["conv" if layer % 2 == 0 else "full_attention" for layer in range(layers)],
        conv_L_cache=3,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=SPECIAL.index(END_OF_TEXT),
        eos_token_id=[SPECIAL.index(END_OF_TURN), SPECIAL.index(END_OF_TEXT)],
        pad_token_id=SPECIAL.index(PAD),
    )


def new_model(tokenizer, *, hidden_size: int, layers: int, heads: int, seed: int) -> torch.nn.Module:
    """A model with random weights for this tokenizer, ready for pretraining."""
    quiet()
    torch.manual_seed(seed)
    config = nano_config(len(tokenizer), hidden_size=hidden_size, layers=layers, heads=heads)
    return AutoModelForCausalLM.from_config(config)


def load(source: str | Path, *, seed: int = 0, quantization: str = "none", frozen: bool = False):
    """(model, tokenizer) from a local folder or a Hub id; "smoke" makes two random layers for tests of the plumbing.

    "nano" is the shipped base; "smol" is SmolLM2-135M-Instruct, once `python -m labkit fetch smol` has brought it. A
    folder that holds an adapter gives its base with the adapter merged in, or left beside it where the base was
    quantized. The model lies on the device that it will compute on. quantization: "none", "8bit" or "4bit" (NF4 with
    double quantization, through bitsandbytes). frozen: these weights will not train, so they are kept in bf16 where the
    machine computes in it, which halves their memory.
    Weights are read from safetensors only and no code of the model's repository is run. Raises ModelError, for a
    folder that lacks some of the weights too: they would be random numbers.
    """
    from labkit import adapters, data, fetch  # the shipped tokenizer lives with the data

    quiet()
    source = fetch.resolve(source)
    if str(source) == "smoke":
        tokenizer = AutoTokenizer.from_pretrained(data.BASE)
        return new_model(tokenizer, hidden_size=64, layers=2, heads=2, seed=seed).to(place()), tokenizer
    with _quoted(source):
        if adapters.is_adapter(source):
            return _load_adapter(source, seed, quantization)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        with _freed_at_once() if quantization != "none" else contextlib.nullcontext():
            model = _load_weights(source, **_number_format(quantization, frozen))
            if quantization != "none":
                _let_file_go(model)
    model = model.to(place()) if quantization == "none" else model  # quantized weights are there, and may not move
    for part in model.modules():  # bitsandbytes would repack 4-bit weights in place at the first answer, and training
        if hasattr(part, "support_avx512bf16_for_cpu"):  # after that would get wrong gradients without an error
            part.support_avx512bf16_for_cpu = False
    if tokenizer.eos_token is None:
        remedy = "Set eos_token in its tokenizer_config.json to the token that ends an answer."
        raise ModelError("the tokenizer must have an end token", got=str(source), remedy=remedy)
    give_padding(tokenizer)
    _check_vocabulary(model, tokenizer, source)
    tokenizer.padding_side = "left"
    _whole_input_of_head(model)
    own = model.generation_config  # its temperature or repetition penalty would make samples of another distribution
    tokens = {name: getattr(own, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = transformers.GenerationConfig(**tokens)
    if tokenizer.chat_template:  # Gemma and Phi-3 end a turn with another of the model's stops than eos_token: take it
        with contextlib.suppress(ModelError):  # one that takes no question and answer is told of where it is used
            end = _end_of_turn(model, tokenizer, data.chat_row(tokenizer, "?", "!")["labels"])
            if end != tokenizer.eos_token_id:
                model.generation_config.eos_token_id = sorted(stops(model, tokenizer) | {end})
                tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    return model, tokenizer


def _whole_input_of_head(model) -> None:
    """Hand the output head its input in one piece.

    Generation asks it about the last place of each row alone, a view with gaps. Of such a view and a head that does not
    train torch.matmul makes one product for each row, with a copy of all the head's weights each: with an adapter on
    smol, 7 GB and 11 seconds for 128 questions.
    """
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(lambda module, args: (args[0].contiguous(), *args[1:]))


def _end_of_turn(model, tokenizer, learned: list[int]) -> int:
    """The token that ends an answer, given the labels of a row: the first of the model's stops among them.

    Where there is none, as in base models that bring a chat model's template (Qwen2.5), the first special token after
    the answer: the model will have to learn to stop there.
    """
    known = [token for token in learned if token in stops(model, tokenizer)]
    added = tokenizer.added_tokens_decoder
    after = [token for token in learned[1:] if token in added and added[token].special]
    return [*known, *after, tokenizer.eos_token_id][0]


def give_padding(tokenizer) -> None:
    """Give a tokenizer without a padding token one that ends no text, or, where it has no other, the end token.

    A reward is read at the last token that is no padding (transformers' sequence classifiers): were that the end token,
    it would be read a word too early. Labels and masks are made from lengths, whatever the padding.
    """
    if tokenizer.pad_token is not None:
        return
    ends = {tokenizer.eos_token, tokenizer.bos_token}
    spare = [
        str(token) for token in tokenizer.added_tokens_decoder.values() if token.special and str(token) not in ends
    ]
    named = [token for word in ("pad", "unk", "reserved") for token in spare if word in token.lower()]
    tokenizer.pad_token = [*named, tokenizer.eos_token][0]


@contextlib.contextmanager
def _quoted(source: str | Path):
    """Whatever transformers, safetensors, json and peft raise for a damaged model, as a ModelError that quotes it."""
    try:
        yield
    except (LabError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        where = "the folder exists but holds no complete model" if Path(source).exists() else "no such folder here"
        remedy = "Name a folder with config.json, *.safetensors and a tokenizer, or a Hub id: with a network, "
        remedy += "or after `python -m labkit fetch ID` brought it."
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"model cannot be loaded: {reason} ({where})", got=str(source), remedy=remedy) from error


def _load_weights(source: str | Path, **form) -> torch.nn.Module:
    """The model, from safetensors alone. Raises ValueError where weights are missing or of another shape."""
    options = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    # told here, by name: the library's own error points to a report that it prints elsewhere
    model, found = AutoModelForCausalLM.from_pretrained(source, ignore_mismatched_sizes=True, **options, **form)
    wrong = {"are missing": found["missing_keys"], "have another shape": [key for key, *_ in found["mismatched_keys"]]}
    for what, names in wrong.items():
        if names:
            raise ValueError(f"{len(names)} weights that config.json asks for {what}, such as {min(names)}")
    return model


def _load_adapter(source: str | Path, seed: int, quantization: str):
    """(model, tokenizer) of the folder of an adapter: see `load`."""
    from peft import PeftModel

    from labkit import adapters

    base, bits = adapters.base_of(source)
    if quantization not in ("none", bits):
        remedy = f"Write quantization = {bits!r}, or start from a whole model."
        raise ModelError("quantization must be that of the adapter's own base", got=quantization, remedy=remedy)
    model, tokenizer = load(base, seed=seed, quantization=bits)
    if not (Path(source) / "adapter_model.safetensors").is_file():
        raise FileNotFoundError("adapter_model.safetensors is missing")
    with warnings.catch_warnings():  # peft only warns of weights that it leaves at their random start
        warnings.filterwarnings("error", message="Found missing adapter keys")
        model = PeftModel.from_pretrained(model, source)
    if not tokenizer.chat_template and (Path(source) / "tokenizer_config.json").is_file():  # what it was trained with
        tokenizer.chat_template = AutoTokenizer.from_pretrained(source, trust_remote_code=False).chat_template
    # a merged model may train again, all of it, as one that was loaded whole
    return (model.merge_and_unload().requires_grad_(True) if bits == "none" else model), tokenizer


def stops(model, tokenizer) -> set[int]:
    """The tokens that end an answer: eos_token, bos_token, and whatever else the model's own settings name."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = ends if isinstance(ends, (list, tuple)) else [ends]
    return {tokenizer.eos_token_id, tokenizer.bos_token_id, *ends} - {None}


def context(model, default: int = 1024) -> int:
    """The most tokens that a model, or the model of a config, reads; `default` where its config names no limit."""
    config = getattr(model, "config", model).get_text_config()
    return getattr(config, "max_position_embeddings", None) or default


def positions(model) -> int:
    """How many places a model with learned positions (GPT-2's) has; without such a table, no number that matters."""
    config = model.config.get_text_config()
    rotary = any("rotary" in name for name, _ in model.named_modules())
    return sys.maxsize if rotary else getattr(config, "max_position_embeddings", None) or sys.maxsize


def padded(tokenizer, rows: list[list[int]], side: str = "left") -> transformers.BatchEncoding:
    """Rows of tokens as one batch of tensors, input_ids and attention_mask, of shape (rows, tokens)."""
    return tokenizer.pad({"input_ids": rows}, padding_side=side, return_tensors="pt")


def _check_vocabulary(model, tokenizer, source) -> None:
    """Raise ModelError for a tokenizer with tokens that the model has no embedding for."""
    rows = model.get_input_embeddings().num_embeddings
    token, last = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if last >= rows:
        remedy = "Take the tokenizer that the model was trained with, or model.resize_token_embeddings and save both."
        what = f"the tokenizer's tokens must be among the model's {rows} embeddings ({source})"
        raise ModelError(what, got=f"{token!r}, number {last}", remedy=remedy)


@contextlib.contextmanager
def _freed_at_once():
    """On Linux, blocks of a megabyte and more go back to the system when they are freed.

    Else quantizing leaves holes in the heap, larger than the weights that it replaced. Only while loading: a training
    takes and frees such blocks all the time and would lose a sixth of its pace.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(-3, 2**20)  # M_MMAP_THRESHOLD
    try:
        yield
    finally:
        if mallopt:
            mallopt(-3, 2**25)  # the highest that glibc itself would choose


def give_back() -> None:
    """Return memory that nothing uses any more to the system, or the GPU's cache to its driver.

    After a training glibc's heap keeps most of what its activations took: for smol 1.9 GB, of which 1.3 were empty.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:  # musl's C library has none
        trim(0)
    if device() == "cuda":
        torch.cuda.empty_cache()


def _let_file_go(model) -> None:
    """Copy what was not quantized, so that nothing needs the file of weights any more, which is mapped into memory.

    Before that the pages read so far are paged out, so that file and copies need not be in memory at once. Another
    model may train in a mapping of the same file: paging out loses nothing of it, where MADV_DONTNEED would.
    """
    for line in Path("/proc/self/maps").read_text().splitlines() if sys.platform == "linux" else []:
        if line.endswith(".safetensors"):
            start, end = (int(place, 16) for place in line.split()[0].split("-"))
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), 21)  # MADV_PAGEOUT
    for part in (*model.parameters(), *model.buffers()):
        part.data = part.data.clone() if part.is_floating_point() else part.data


def _number_format(quantization: str, frozen: bool) -> dict:
    """The options of from_pretrained for whole weights or quantized ones. Raises ModelError."""
    if quantization == "none":
        return {"dtype": torch.bfloat16 if frozen and bf16() else torch.float32}
    if device() not in QUANTIZES:
        remedy = 'Write quantization = "none".'
        raise ModelError(
            f"quantization must be none on {device()}: bitsandbytes has no kernels", got=quantization, remedy=remedy
        )
    compute = torch.bfloat16 if bf16() else torch.float32
    bits = transformers.BitsAndBytesConfig(
        load_in_8bit=quantization == "8bit",
        load_in_4bit=quantization == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    return {"quantization_config": bits, "dtype": compute, "device_map": {"": place()}}


def weights(model) -> dict[str, int]:
    """Numbers of weights: all of them, and those that train. Tied weights count once, quantized ones one by one."""
    every = {id(weight): weight for weight in model.parameters()}.values()
    return {
        "parameters": sum(map(_count, every)),
        "trainable_parameters": sum(_count(w) for w in every if w.requires_grad),
    }


def _count(weight: torch.Tensor) -> int:
    """Numbers in a weight; of a 4-bit one, which holds two in a byte, those that it stands for."""
    state = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else state.shape.numel()


@functools.cache
def place() -> torch.device:
    """The device that accelerate takes for this process, with its number where it has one."""
    from accelerate import PartialState

    return PartialState().device


def device() -> str:
    """The kind of that device: "cuda", "mps", "xpu" or "cpu"."""
    return place().type


@functools.cache
def bf16() -> bool:
    """Whether bfloat16 makes this machine faster: CUDA from Ampere on, or a CPU with bf16 instructions."""
    if device() == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device() == "cpu":
        try:
            return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        except AttributeError:  # private to torch: where it is gone, be safe and slow
            return False
    return False


def peak_mb() -> float:
    """The most memory (MB = 10^6 bytes) held at once up to now: a CUDA GPU's by torch, else this process's."""
    from labkit import runs

    return round(torch.cuda.max_memory_allocated() / 1e6, 1) if device() == "cuda" else runs.peak_rss_mb()


def autocast():
    """The context that every forward pass of the lab's own code runs in."""
    return torch.autocast(device(), dtype=torch.bfloat16, enabled=bf16())
