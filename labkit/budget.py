"""Will it fit? Weights, memory and time of a training, predicted from a model's configuration before it starts.

    weights       fp32 4 bytes, bf16 2; a quantized Linear 8 bits and a scale per output, or 4 + 8/64 + 32/(64 * 256) =
                  4.127: NF4 in blocks of 64, their scales quantized again (QLoRA, Dettmers et al. 2023); 4.5 without
    LoRA          rank * (in + out) weights for each Linear adapted (Hu et al. 2021)
    gradients, AdamW's moments    1 and 2 numbers per trainable weight, in its format: with fp32 weights the 16 bytes of
                  ZeRO (Rajbhandari et al. 2020). In 8 bits, 2 + 8/256 bytes (Dettmers et al. 2022). Muon: 1 per matrix
    activations   per token what autograd keeps: inputs of Linears that train, outputs that are worked on, norms. Of
                  attention no scores, as in FlashAttention: a GPT layer keeps 32 * hidden bytes in bf16, or 34 with
                  dropout (Korthikanti et al. 2022). On a CPU, SFT and reward models keep them for short rows, and
                  everywhere models without a fused form of attention (Gemma 2, gpt-oss).
                  Checkpointing: one hidden state per layer, and all of one layer
    logits        a batch in fp32 four times (Trainer, ORPO, PPO; SFT on a CPU and rewards: of learned tokens alone);
                  at most a tile of it in trl's SFT, DPO, RLOO and GRPO
    sampling      PPO's answers of a batch, or of a look: keys and values, which grow into new ones with every token,
                  and what one layer makes of the prompts; learning begins when they are gone
    heap          of a CPU's process: holes that activations of changing sizes leave in it, less what gradients fill.
                  Logits leave none: blocks above 32 MB go back to the system at once

Numbers of weights are exact (labkit/shapes.py), bytes of weights, gradients and moments arithmetic. Activations and
logits are approximate; the tests compare them with what torch kept on a CPU, for four architectures. Not measured:
GPUs. Not counted: dropout (on a CPU, attention's keeps all scores), LoRA on experts, grouped keys copied for
padded rows, state-space scans, optimizers' temporary copies, a GPU's gaps.
"""

import contextlib
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import psutil
import torch
from transformers import AutoConfig, AutoTokenizer

from labkit import data, models, preferences
from labkit.errors import ConfigError, ModelError
from labkit.shapes import Shape, adapted, folder, shape

BYTES = {"fp32": 4, "bf16": 2}
CHOICES = {
    "method": ("full", "lora"), "quantization": ("none", "8bit", "4bit"), "dtype": tuple(BYTES),
    "lora_variant": ("lora", "rslora", "dora"),
    "optimizer": ("adamw", "paged_adamw_8bit", "muon"), "device": ("cpu", "cuda", "mps", "xpu"),
    "stage": ("pretrain", "sft", "reward", "dpo", "orpo", "ppo"), "algorithm": ("ppo", "rloo", "grpo"),
}  # fmt: skip
PAIRED = ("reward", "dpo", "orpo")  # their rows are pairs: twice the tokens
PADDED = {"sft": 16, "reward": 4}  # on a CPU these stages fill their rows up to a multiple of so many tokens
LOOK = 128  # held-out prompts that PPO answers at every look
LOGIT_BYTES = 16  # of a word at one place, with its gradients
HOLES = 0.25  # of the activations; set on the older rows of benchmarks/MEMORY.md
TILE = (4096, 32_768)  # tokens x words of the logits that trl 1.16 holds at a time, 8 times in fp32 without Triton
PROCESS = {"cpu": 650_000_000, "mps": 650_000_000, "cuda": 600_000_000, "xpu": 600_000_000}  # imports; context


@dataclass(frozen=True)
class Budget:
    """Bytes of one training on one device."""

    parts: dict[str, int]  # they do not all peak at once, so that their sum is rather too much
    loading: int  # peak while the model is read: process, weights, and the largest tensor once more in fp32
    total: int  # that must be free: what of the parts is there at once, or the loading, if more
    trainable: int  # weights that train
    bits_per_weight: float  # of a Linear inside the layers; the whole model has 8 * parts["weights"] / parameters


@dataclass(frozen=True)
class Change:
    """A change in words and as arguments of `estimate`, the bytes it saves, and whether it is enough."""

    text: str
    knobs: dict
    saves: int
    fits: bool


def _check(**values) -> None:
    """Raise ConfigError for the first value that is neither one of its choices nor a whole number >= 1."""
    for name, value in values.items():
        allowed = CHOICES.get(name)
        if value not in allowed if allowed else type(value) is not int or value < 1:
            near = [*get_close_matches(str(value), allowed or [], n=1, cutoff=0.4), *(allowed or [8])][0]
            what = f"{name} must be " + (f"one of {', '.join(allowed)}" if allowed else "a whole number >= 1")
            raise ConfigError(what, got=value, remedy=f"Write for example {name} = {near!r}.")


def estimate(
    shape: Shape, *, method: str = "full", quantization: str = "none", lora_rank: int = 8,
    target_modules: str | Iterable[str] = "all-linear", optimizer: str = "adamw", batch_size: int = 8,
    seq_length: int = 512, dtype: str = "fp32", autocast: bool = True, gradient_checkpointing: bool = False,
    stage: str = "sft", precompute_ref_log_probs: bool = True, double_quant: bool = True, device: str = "cpu",
    token_rows: int = 0, separate_values: bool = True, lora_variant: str = "lora", learned_tokens: int = 0,
    sampled_rows: int = 0, algorithm: str = "ppo",
) -> Budget:  # fmt: skip
    """Bytes of one training. Raises ConfigError for a value that is not allowed.

    dtype: of weights that are not quantized. autocast: whether products run in bf16 (`models.bf16()`); fp32 weights are
    then held once more, in bf16. batch_size: rows, or pairs in reward, dpo and orpo. Adapters are fp32 (peft), or bf16
    on a quantized model (trl). DPO's and PPO's reference is a copy of the model; with LoRA it is the model without its
    adapter. PPO's reward model is a whole one in fp32; its values are a model of their own, which trains as the policy
    does, unless separate_values is False: a head that weighs nothing. token_rows: rows of tied embeddings that train
    beside an adapter; the embeddings then have a copy and a gradient as a whole. learned_tokens: of a row, those that
    the loss looks at, where SFT on a CPU scores no others; 0: all. Of a reward model's pairs, those of the chosen
    answer where they are predicted too (sft_coef); 0: none. lora_variant: "dora" trains a length for each output of
    a Linear beside its adapter. sampled_rows: answers that PPO samples and scores at once.
    algorithm: of the stage ppo; rloo and grpo are trl's, which hold a tile of the logits.
    """
    _check(method=method, quantization=quantization, lora_rank=lora_rank, optimizer=optimizer, dtype=dtype)
    _check(batch_size=batch_size, seq_length=seq_length, stage=stage, device=device, lora_variant=lora_variant)
    _check(algorithm=algorithm)
    lora, quantized, full = method == "lora", quantization != "none", BYTES[dtype]
    if quantized and not lora:
        remedy = 'Write method = "lora": quantized weights do not train, an adapter on them does.'
        raise ConfigError('quantization must be "none" with method = "full"', got=quantization, remedy=remedy)
    lines = adapted(shape, target_modules) if lora else shape.linears
    score = shape.hidden if stage == "reward" else 0  # its head, in the place of the output head, trains whole
    parameters = shape.parameters + score - (shape.head if score else 0)
    trains = parameters
    if lora:
        trains = sum(lora_rank * (wide + out) + (lora_variant == "dora") * out for _, wide, out in lines)
        trains += token_rows * shape.hidden + score
    width = (2 if quantized else 4) if lora else full  # bytes of a weight that trains
    inside, outputs = sum(wide * out for _, wide, out in shape.linears), sum(out for *_, out in shape.linears)
    nf4 = 4 + (8 / 64 + 32 / (64 * 256) if double_quant else 32 / 64)
    bits = {"none": 8 * full, "8bit": 8 + 32 * outputs / max(1, inside), "4bit": nf4}[quantization]
    weights = int(inside * bits / 8) + (parameters - inside) * full
    muon = width * (trains if lora else 2 * trains - shape.matrices)  # an adapter is made of matrices
    moments = {"adamw": 2 * width * trains, "paged_adamw_8bit": int((2 + 8 / 256) * trains), "muon": muon}[optimizer]

    product, hidden = 2 if autocast else full, shape.hidden  # product: bytes of a number out of a matrix product
    # outputs that are only added to the residual stream, two in every layer, are not kept
    kept = product * max(0, outputs - 2 * hidden * shape.layers + shape.between)
    kept += hidden * (full * shape.norms[0] + (4 if lora else 4 + full) * shape.norms[1])
    apart = lora if dtype == "bf16" else autocast  # a cast gives each Linear its own copy; else siblings share an input
    inputs = {(name if apart else name.rpartition(".")[0], wide): wide for name, wide, _ in lines}
    kept += (4 if lora and not (autocast or quantized) else product) * sum(inputs.values())
    outs = lora_rank * len(lines) * lora + shape.layers * shape.attention * (lora or not apart)  # A x, and attention's
    kept += product * outs
    if lora and lora_variant == "dora":  # what the layer and the adapter gave, before their sum gets its new length
        kept += 2 * product * sum(out for *_, out in lines)
    head = shape.vocab * hidden
    cast = shape.parameters - shape.embedding - head - (inside if quantized else 0)
    short = stage in ("sft", "reward") and device == "cpu" and seq_length <= models.SHORT
    if short or shape.written_out:  # training.write_attention_out
        kept += shape.attending * ((4 + product) * shape.heads * seq_length + 2 * product * shape.attention)
    if gradient_checkpointing:
        kept = kept // shape.layers + full * hidden * shape.layers
        cast = cast // shape.layers if lora else cast  # autocast keeps its copies of weights that train
    tokens = batch_size * seq_length * (2 if stage in PAIRED else 1)
    few = min(learned_tokens, seq_length) if stage == "reward" or (stage == "sft" and device == "cpu") else 0
    scored = batch_size * few if few or stage == "reward" else tokens
    logits = LOGIT_BYTES * scored * shape.vocab
    if stage == "dpo" or algorithm != "ppo" or (stage == "sft" and device != "cpu"):
        # a tile, gradients of hidden states and of the head
        tile = min(tokens, TILE[0]) * min(shape.vocab, TILE[1]) * (product + 4 * 8 * (device != "cuda"))
        logits = tile + 4 * tokens * hidden + (0 if lora else 4 * head)
    logits += 4 * full * head if token_rows and lora else 0  # changed and its gradient, for both of the head's uses
    reference = 0 if lora or (stage == "dpo" and precompute_ref_log_probs) else weights
    values = stage == "ppo" and separate_values
    beside = reference if stage in ("dpo", "ppo") else 0
    beside += shape.head * full if score and few else 0  # the output head that scores their words
    beside += (stage == "ppo") * 4 * shape.parameters + values * (weights + (width * trains if lora else 0))
    trained = 2 if values else 1
    parts = {
        "weights": weights, "adapter": width * trains if lora else 0, "gradients": width * trains * trained,
        "optimizer": moments * trained, "activations": kept * tokens * trained, "logits": logits,
        "autocast": 2 * (cast + (0 if score and not few else head)) if autocast and dtype == "fp32" else 0,
        "process": PROCESS[device], "other models": beside,
    }  # fmt: skip
    if device == "cpu":
        parts["heap"] = max(0, int(HOLES * parts["activations"]) - parts["gradients"])
    loading = PROCESS[device] + weights + 4 * shape.largest
    at_once = sum(parts.values())
    if stage != "ppo" or algorithm != "ppo":  # logits are gone when gradients come; PPO keeps those until the next
        at_once -= min(parts["logits"], parts["gradients"])
    if sampled_rows:  # the cache, which grows into a new one at every token, and what one layer makes of the prompts
        wide = max(out for *_, out in shape.linears)
        parts["sampling"] = sampled_rows * seq_length * (2 * product * shape.cache + 4 * (3 * wide + 4 * hidden))
        learning = sum(parts[name] for name in ("activations", "logits", "heap") if name in parts)
        at_once += max(0, parts["sampling"] - learning)  # before anything is learned from the answers
    return Budget(parts, loading, max(loading, at_once), trains, bits)


def shape_of(stage: str, config) -> Shape:
    """The shape of the model that a stage's config trains; kept, because every turn of a knob asks for it."""
    if stage == "pretrain" and config.model == "nano":
        return _kept((config.vocab_size, config.hidden_size, config.layers, config.heads))
    return _kept(config.model, _stamp(folder(config.model)))


def _stamp(path: str | Path) -> tuple:
    """When and how large the file, or the files of the folder, were written last: what is kept of them ends with it."""
    files = sorted(Path(path).iterdir()) if Path(path).is_dir() else [Path(path)]
    return tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.is_file())


@functools.cache
def _kept(what: str | tuple[int, ...], stamp: tuple = ()) -> Shape:
    if isinstance(what, str):
        return shape(what)
    vocab_size, hidden_size, layers, heads = what
    return shape(models.nano_config(vocab_size, hidden_size=hidden_size, layers=layers, heads=heads))


def knobs(stage: str, config) -> dict:
    """The arguments of `estimate` for a stage's config on this machine, rows as long as its longest ones."""
    found = {
        "stage": stage,
        "batch_size": getattr(config, "minibatch_size", config.batch_size),
        "autocast": models.bf16(),
        "device": models.device(),
    }
    found["optimizer"] = getattr(config, "optimizer", "adamw")
    if stage == "ppo":
        found["algorithm"] = config.algorithm
        found["separate_values"] = config.algorithm == "ppo" and config.value_model == "separate"
        found["sampled_rows"] = max(config.batch_size, min(LOOK, _held_out(config.data, _stamp(config.data))))
    if stage == "pretrain":
        found["seq_length"] = config.block_size
    else:
        rows = stage, config.model, getattr(config, "data", ""), getattr(config, "turns", 1)
        length, learned = row_length(*rows)
        multiple = PADDED.get(stage, 1) if models.device() == "cpu" else 1
        found["seq_length"] = -(-length // multiple) * multiple + (config.max_new_tokens if stage == "ppo" else 0)
        answers_only = stage == "sft" and config.loss_on == "assistant" and not config.replay  # replayed text is whole
        if answers_only or (stage == "reward" and config.sft_coef):
            found["learned_tokens"] = learned
    if getattr(config, "tuning", "full") == "lora":
        found |= {"method": "lora", "lora_rank": config.lora_rank, "target_modules": config.target_modules}
        found["dtype"] = "bf16" if models.bf16() else "fp32"  # frozen weights, as models.load keeps them
        found |= {"quantization": config.quantization, "lora_variant": config.lora_variant}
        start = config.parent or ("nano" if stage in ("sft", "orpo") else "")
        if config.model == "nano" and (start == "nano" or start.startswith("pretrain-")):
            found["token_rows"] = 3  # <|user|>, <|assistant|>, <|end|>: adapters.untaught
    return found


def row_length(stage: str, model: str, source: str, turns: int = 1) -> tuple[int, int]:
    """Tokens of the longest rows, and the most that are learned of one: `turns` to a row, by the model's template.

    Of PPO the longest prompts. Kept until a file of the model or of the data is written again. Raises DataError,
    ModelError.
    """
    return _row_length(stage, model, source, turns, _stamp(folder(model)), _stamp(source))


@functools.cache
def _row_length(stage: str, model: str, source: str, turns: int, *stamps: tuple) -> tuple[int, int]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder(model), trust_remote_code=False)
        most = min(1024, models.context(AutoConfig.from_pretrained(folder(model), trust_remote_code=False)))
    except Exception as error:  # see shapes.shape
        remedy = "Name a folder that holds the model's tokenizer too, or a Hub id (needs a network)."
        what = f"model has no usable tokenizer: {' '.join(str(error).split())[:300]}"
        raise ModelError(what, got=model, remedy=remedy) from error
    data.give_template(tokenizer)
    rows, _ = preferences.pairs(source) if stage in (*PAIRED, "ppo") else data.instructions(source)
    sides = () if stage == "ppo" else ("chosen", "rejected", "answer")  # PPO's prompts alone: it samples the answers
    answers = [max((row.get(side, "") for side in sides), key=len, default="") for row in rows]
    said, made = list(zip(rows["prompt"], answers, strict=True)), []
    for length in (lambda row: len(row[0]) + len(row[1]), lambda row: len(row[1])):  # the longest, most to learn
        longest = sorted(said, key=length)[-8 * turns :]
        made += [data.conversation(tokenizer, longest[at : at + turns]) for at in range(0, len(longest), turns)]
    made = [{name: values[:most] for name, values in row.items()} for row in made]
    learned = [sum(label != data.IGNORED for label in row["labels"]) for row in made]
    return max(len(row["input_ids"]) for row in made), max(learned)


@functools.cache
def _held_out(source: str, stamp: tuple) -> int:
    return len(preferences.pairs(source)[1])


def fits(budget: Budget, available: int) -> str:
    """The verdict: "fits", "tight" (above 85%, where it hangs on what is not counted) or "will not fit"."""
    return "will not fit" if budget.total > available else "tight" if budget.total > 0.85 * available else "fits"


# What a change is called where it is made; what no config of the lab has is for a trainer of one's own.
NAMES = {"method": "tuning", "seq_length": "tokens in the data's longest rows"}
OWN = {"gradient_checkpointing", "optimizer"}


def _in_words(stage: str, before: dict, new: dict) -> str:
    names = NAMES | {"pretrain": {"seq_length": "block_size"}, "ppo": {"batch_size": "minibatch_size"}}.get(stage, {})
    inside = [f"{names.get(name, name)} {before[name]} -> {new[name]}" for name in new if name not in OWN]
    outside = [f"{name} {before[name]} -> {new[name]} in a trainer of your own" for name in new if name in OWN]
    return " and ".join(inside + outside)


def advice(shape: Shape, available: int, **knobs) -> list[Change]:
    """What to change for `estimate(shape, **knobs)` to fit into `available` bytes; [] where it does already.

    What is enough alone comes first, the least costly at the top; or else the fewest together that are enough, if that
    can be of knobs that the lab's configs have. Texts name the configs' parameters.
    """
    now = estimate.__kwdefaults__ | knobs
    before = estimate(shape, **now).total
    if before <= available:
        return []

    def change(**new) -> Change:
        new = {name: value for name, value in new.items() if value != now[name]}
        after = estimate(shape, **now | new).total
        return Change(_in_words(now["stage"], now, new), new, before - after, after <= available)

    def least(name: str, low: int) -> Change:  # halved no more often than it takes
        tries = [change(**{name: min(now[name], max(low, now[name] >> by))}) for by in range(now[name].bit_length())]
        return next((step for step in tries if step.fits), tries[-1])

    def together(steps: list[Change]) -> Iterable[Change]:
        for size in range(2, len(steps) + 1):
            for group in itertools.combinations(steps, size):
                yield change(**{name: value for step in group for name, value in step.knobs.items()})

    ladder, quantizes = [least("batch_size", 1)], now["device"] in models.QUANTIZES
    if now["stage"] != "pretrain":  # a low-rank update is too little to start from nothing
        ladder += [least("lora_rank", 1)] if now["method"] == "lora" else []
        bits = ("none", "8bit", "4bit") if quantizes else ("none",)
        ladder += [change(method="lora", quantization=one) for one in bits]
    ladder += [least("seq_length", 64)]
    own = [change(gradient_checkpointing=True), *([change(optimizer="paged_adamw_8bit")] if quantizes else [])]
    # an adapter keeps more activations, so that what costs memory alone may be a part of what is enough together
    ladder, own = ([step for step in steps if step.saves] for steps in (ladder, own))
    tries = (step for step in itertools.chain(together(ladder), together(ladder + own)) if step.fits)
    enough = [step for step in ladder + own if step.fits] or [*itertools.islice(tries, 1)]
    return enough + [step for step in ladder + own if step.saves > 0 and step not in enough]


def available_bytes(device: str = "cpu") -> int:
    """Bytes a training may take: a GPU's free memory, or a CPU's within the container's limit; and what is ours."""
    _check(device=device)
    if device == "cpu":
        available = min([psutil.virtual_memory().available, *_limits()])
        return available + min(psutil.Process().memory_info().rss, PROCESS["cpu"])
    backend = getattr(torch, device)
    if not backend.is_available():
        raise ConfigError("device must be one of this machine", got=device, remedy='Write device = "cpu".')
    if device == "mps":
        return backend.recommended_max_memory()
    free, whole = backend.mem_get_info()  # others use the card too; our own context and cache are in the estimate
    return min(whole, free + backend.memory_reserved() - backend.memory_allocated() + PROCESS[device])


def _limits(root: Path = Path("/")) -> list[int]:
    """Bytes left under each memory limit on this process (cgroup v1 and v2); file cache counts as left."""
    left, listing = [], root / "proc/self/cgroup"
    for line in listing.read_text().splitlines() if listing.exists() else []:
        _, kind, path = line.split(":", 2)
        folder = root / "sys/fs/cgroup" / kind / path.lstrip("/")
        for place in [folder, *folder.parents] if kind in ("", "memory") else []:
            with contextlib.suppress(OSError, ValueError):  # "max", or outside this container's view: no limit here
                names = ("limit_in_bytes", "usage_in_bytes") if kind else ("max", "current")
                limit, used = (int((place / f"memory.{name}").read_text()) for name in names)
                stat = dict(row.split() for row in (place / "memory.stat").read_text().splitlines())
                left.append(limit - used + int(stat["total_inactive_file" if kind else "inactive_file"]))
    return left


def probe(step: Callable[[], object], n: int = 3) -> float:
    """Seconds per step: the median of n calls of `step`, which waits for its device, without the first, cold one."""
    _check(n=n)
    seconds = []
    for _ in range(n):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:] or seconds)


def time_left(seconds_per_step: float, steps: int) -> float:
    """Seconds for `steps` more steps; evaluation and saving come on top."""
    return seconds_per_step * steps
