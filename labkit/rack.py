"""The adapter rack: one base, loaded once, and beside it any number of LoRA adapters (Hu et al. 2021).

    one adapter   W x + s B A x               A: (r, in), B: (out, r), s = lora_alpha / r; W is shared and only read
    a blend       W x + Σ w_i s_i B_i A_i x   a sum of task vectors (Ilharco et al. 2022; LoraHub, Huang et al. 2023)
    merged        (W + s B A) x               one matrix, as fast as the base, rounded to the number format of W

A blend is an adapter of rank r_1 + ... + r_n, exact whatever the ranks (peft's "cat"; in its "linear" each B also meets
the others' A). DoRA (Liu et al. 2024) rescales the rows of W too, which does not add up: it switches and merges, and is
in no blend. `merge_damage` measures what rounding costs; a 4-bit base (NF4, Dettmers et al. 2023) is rounded anew.
"""

import copy
import math
import numbers
import tempfile
import warnings
from pathlib import Path

from labkit import adapters, data, fetch, models, runs  # before peft, which imports bitsandbytes: models silences it
from labkit.errors import ConfigError, ModelError

# isort: split
import numpy
import torch
from peft import LoraConfig, PeftModelForCausalLM, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import set_additional_trainable_modules
from safetensors.torch import load_file
from transformers.utils import cached_file

BASE = "base"  # peft's name for an adapter on no layer: while it is active, the bare base answers
# What an adapter may set. Other settings change the base.
PLAIN = "r lora_alpha lora_dropout target_modules fan_in_fan_out task_type auto_mapping inference_mode peft_version "
PLAIN += "trainable_token_indices use_rslora use_dora init_lora_weights"
STARTS = (True, False, "gaussian", "orthogonal", "eva")  # of A and B; "pissa" and its kind take theirs out of the base
SIZES = "name", "rank", "trainable_weights", "bytes_on_disk", "base_bytes_on_disk"


class Rack:
    """Adapters on one base. `rack.model` answers as `rack.active` says, "" being the bare base; folders: by name."""

    def __init__(self, base_folder_or_source: str | Path, *, quantization: str = "none"):
        self.source, self.quantization, self.folders, self.active = base_folder_or_source, quantization, {}, ""
        model, self.tokenizer = models.load(self.source, quantization=quantization)
        data.give_template(self.tokenizer)  # the one that SFT gave the adapters' rows
        if adapters.is_peft(model):
            raise ModelError("the base must be no QLoRA adapter", got=str(self.source), remedy="Attach it to its base.")
        for part in model.modules():  # bitsandbytes would repack 4-bit weights while they answer; peft misreads that
            part.support_avx512bf16_for_cpu = False
        self.model = PeftModelForCausalLM(model, LoraConfig(target_modules=DUMMY_TARGET_MODULES), BASE).eval()

    def attach(self, name: str, folder: str | Path) -> None:
        """Load a LoRA adapter, from its folder or by its run's id, beside the others; `switch` lets it answer.

        One of rsLoRA (Kalajdzievski 2023) is the same adapter with another alpha, and becomes that: alpha / sqrt(r) =
        (alpha sqrt(r)) / r. peft would scale it once too often in a blend.
        """
        self._check_free(name)
        path = Path(folder)
        path = path if len(path.parts) > 1 or path.is_dir() else runs.get(str(folder)).checkpoint
        file = path / "adapter_model.safetensors"
        if not adapters.is_adapter(path) or not file.is_file():
            remedy = 'Name a run that was trained with tuning = "lora", or its checkpoint folder.'
            raise ModelError(f"an adapter's folder must hold {file.name} and a config", got=str(folder), remedy=remedy)
        try:
            config, (base, _) = LoraConfig.from_pretrained(path), adapters.base_of(path)
            usual = LoraConfig(base_model_name_or_path=base).to_dict()
            odd = {key for key, value in config.to_dict().items() if value != usual.get(key)} - set(PLAIN.split())
            odd |= {"init_lora_weights"} if config.init_lora_weights not in STARTS else set()
            if odd or not isinstance(config.target_modules, set):
                raise ValueError(f"it is no plain LoRA: see {', '.join(sorted(odd)) or 'target_modules'}")
            config.init_lora_weights = True  # its weights come from the file
            if config.use_rslora:
                config.lora_alpha, config.use_rslora = config.lora_alpha * math.sqrt(config.r), False
            with warnings.catch_warnings(action="ignore"):  # of names that are a part of "lora_": no matter here
                self.model.add_adapter(name, config)
                self._give_rows()
                own, given = get_peft_model_state_dict(self.model, adapter_name=name), load_file(file)
                set_peft_model_state_dict(self.model, own | given, adapter_name=name)
            lost = [key for key in own | given if key not in own or (own[key].numel() and key not in given)]
            if lost:
                raise ValueError(f"{len(lost)} weights have no partner, such as {lost[0]}")
        except Exception as error:  # whatever json, safetensors and peft raise for files that do not fit
            self.model.delete_adapter(name) if name in self.model.peft_config else None
            what = f"the adapter must fit the base {self.source} ({' '.join(str(error).split())[:300]})"
            remedy = "Attach LoRA, rsLoRA or DoRA, to a Rack of the base which its adapter_config.json names."
            raise ModelError(what, got=str(folder), remedy=remedy) from error
        self.model.eval()  # peft makes an adapter's dropout in training mode
        self.folders[name] = path
        own = {Path(source).resolve() for source in (self.source, fetch.resolve(self.source))}
        if Path(str(base)).resolve() not in own:  # the shapes fit, so that nothing else would tell
            warnings.warn(f"{name} was trained on {base}; the base of this rack is {self.source}", stacklevel=2)

    def switch(self, name: str) -> None:
        """Let this adapter answer; "" is the bare base."""
        self.model.set_adapter(self._known(name) if name else BASE, inference_mode=True)
        self.active = name

    def disable(self) -> None:
        """Let the bare base answer, until the next `switch`."""
        self.switch("")

    def blend(self, weights: dict[str, float], as_name: str = "blend") -> None:
        """Add the weighted sum of adapters as one more adapter, in place of an earlier blend, and switch to it."""
        real = [isinstance(weight, numbers.Real) and not isinstance(weight, bool) for weight in weights.values()]
        fine = all(real) and all(map(math.isfinite, weights.values()))
        if not weights or not fine or as_name in weights:
            remedy = 'Write for example rack.blend({"a": 0.5, "b": 0.5}).'
            raise ConfigError(f"weights must be finite, of adapters other than {as_name}", got=weights, remedy=remedy)
        weights = {self._known(name): float(weight) for name, weight in weights.items()}
        parts = {name: weight for name, weight in weights.items() if weight} or weights
        if dora := [name for name in parts if self.model.peft_config[name].use_dora]:
            remedy = "Leave it out, or train it as LoRA: DoRA rescales each row of the base, which does not add up."
            raise ConfigError("no part of a blend may be a DoRA adapter", got=dora, remedy=remedy)
        self.unload(as_name) if self.folders.get(as_name, "") is None else self._check_free(as_name)
        self.model.add_weighted_adapter(list(parts), list(parts.values()), as_name, combination_type="cat")
        self._blend_rows(parts, as_name)
        self.folders[as_name] = None
        self.model.eval()
        self.switch(as_name)

    def _give_rows(self) -> None:
        """Give an empty set of chat tokens' rows to those without: where one has rows, peft looks for them in all."""
        layer = getattr(self.model.get_input_embeddings(), "token_adapter", None)
        for name, config in self.model.peft_config.items() if layer else ():
            if name != BASE and name not in layer.token_indices:
                config.trainable_token_indices = []
                shape = self.model.config.to_dict()
                set_additional_trainable_modules(self.model, config, shape, name, activate_adapter=False)
                layer.token_indices[name] = numpy.empty(0, int)  # peft's [] would be no whole numbers

    @torch.no_grad()
    def _blend_rows(self, parts: dict[str, float], as_name: str) -> None:
        """Add the weighted changes of chat tokens' rows, which peft leaves out of a weighted adapter."""
        ids = {name: self.model.peft_config[name].trainable_token_indices or [] for name in parts}
        union = sorted(set().union(*ids.values()))
        config = self.model.peft_config[as_name]
        config.trainable_token_indices = union or None
        if not union:
            return
        set_additional_trainable_modules(self.model, config, self.model.config.to_dict(), as_name)
        layer = self.model.get_input_embeddings().token_adapter
        layer.update_layer(as_name, token_indices=union)  # else the rows of the first part's tokens only
        rows = layer.trainable_tokens_delta
        base = rows[as_name].clone()
        for name, weight in parts.items():
            places = [union.index(token) for token in ids[name]]
            rows[as_name][places] += weight * (rows[name] - base[places])

    def merged(self, name: str) -> torch.nn.Module:
        """A plain transformers model: a copy of the base with the adapter merged into its weights."""
        with warnings.catch_warnings(action="ignore"):  # of the rounding, once for each 4-bit layer
            model = copy.deepcopy(self.model).merge_and_unload(adapter_names=[self._known(name)])
        return model.requires_grad_(self.quantization == "none")  # the rack froze it

    def save_merged(self, name: str, folder: str | Path) -> Path:
        """Write the merged model and the tokenizer into a new folder, to be loaded anywhere. Raises ConfigError."""
        path = Path(folder).expanduser()
        if not str(folder).strip() or path.exists():
            raise ConfigError("the folder must be named, and new", got=str(folder), remedy="Choose another folder.")
        for part in (self.merged(name), self.tokenizer):
            part.save_pretrained(path)
        return path

    @torch.no_grad()
    def merge_damage(self, name: str, ids) -> dict[str, dict[str, float]]:
        """How rounding W + s B A changes the logits of token ids, by format of W: absolute, KL in nats per token."""
        damage, formats = {}, {"fp32": torch.float32, "bf16": torch.bfloat16}
        formats |= {"4bit": None} if models.device() in models.QUANTIZES else {}
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
            for part in models.load(self.source):
                part.save_pretrained(f"{folder}/base")
            self.model.save_pretrained(folder, selected_adapters=[self._known(name)], save_embedding_layers=False)
            for number, dtype in formats.items():
                rack = Rack(f"{folder}/base", quantization="none" if dtype else "4bit")
                rack.model = rack.model.to(dtype) if dtype else rack.model
                rack.attach(name, f"{folder}/{name}")
                rack.switch(name)
                pair = rack.merged(name), rack.model
                for part in (part for one in pair for part in torch.nn.Module.float(one).modules()):
                    part.compute_dtype = torch.float32  # both compute in fp32: only their weights are rounded
                rows = torch.atleast_2d(torch.as_tensor(ids))
                merged, apart = (m(rows.to(m.device)).logits.cpu().double() for m in pair)  # Apple's GPUs have no fp64
                gap, kl = (merged - apart).abs(), apart.softmax(-1) * (apart.log_softmax(-1) - merged.log_softmax(-1))
                numbers = {"max_difference": gap.max(), "mean_difference": gap.mean(), "mean_kl": kl.sum(-1).mean()}
                damage[number] = {key: value.item() for key, value in numbers.items()}
        return damage

    def unload(self, name: str) -> None:
        """Free the adapter's memory; where it was active, the bare base answers. Its folder stays."""
        self.switch("" if self._known(name) == self.active else self.active)
        self.model.delete_adapter(name)
        del self.folders[name]

    def sizes(self) -> list[dict]:
        """One row per adapter. What is in memory only, as a blend or the base "smoke", has 0 bytes on disk."""
        base, rows = self.model.name_or_path, []
        base = base and Path(cached_file(base, "config.json")).parent  # the Hub's files lie in its cache
        for name, folder in self.folders.items():
            disk = [sum(f.stat().st_size for f in at.glob("*.safetensors")) if at else 0 for at in (folder, base)]
            row = name, self.model.peft_config[name].r, sum(map(torch.numel, self._weights(name).values())), *disk
            rows.append(dict(zip(SIZES, row, strict=True)))
        return rows

    def _known(self, name: str) -> str:
        if name not in self.folders:
            remedy = f"Attached: {', '.join(self.folders) or 'none yet; write rack.attach(name, folder)'}."
            raise ConfigError("the adapter must be attached", got=name, remedy=remedy)
        return name

    def _check_free(self, name: str) -> None:  # torch has names of its own, such as "keys"
        if name in (BASE, *self.folders) or hasattr(torch.nn.ModuleDict, name) or not name.isidentifier():
            raise ConfigError("the name must be one word, and free", got=name, remedy="Choose another word.")

    def _weights(self, name: str) -> dict[str, torch.nn.Parameter]:
        """The adapter's own weights: its matrices, and the rows of chat tokens that were trained beside them."""
        mine = f"trainable_tokens_delta.{name}", f".{name}.weight"
        return {key: weight for key, weight in self.model.named_parameters() if key.endswith(mine)}
