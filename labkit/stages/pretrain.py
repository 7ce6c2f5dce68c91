"""Pretraining: from raw text to a base model that predicts the next token.

    loss = -1/T sum_t log p(x_t | x_<t)

Muon (Jordan et al. 2024) turns the update of each weight matrix into its nearest orthogonal matrix, so that all
directions learn at the same pace; embeddings and norms are left to AdamW.
"""

import threading
from collections.abc import Callable

import torch
import transformers

from labkit import adapters, data, models, runs, training
from labkit.config import PretrainConfig
from labkit.errors import ConfigError
from labkit.looks import Looks
from labkit.recorder import Recorder


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon on the weight matrices inside the layers, AdamW on everything else, as one optimizer."""

    def __init__(self, model: torch.nn.Module, learning_rate: float):
        inside = [(name, w) for name, w in model.named_parameters() if w.requires_grad]
        linear = {id(part.weight) for part in adapters.linears(model).values()}
        matrices = [w for _, w in inside if id(w) in linear]
        taken = {id(w) for w in matrices}
        rest = [w for _, w in inside if id(w) not in taken]
        self.muon = torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        self.adamw = torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
        super().__init__(self.muon.param_groups + self.adamw.param_groups, {})

    def step(self, closure=None):
        self.muon.step()
        self.adamw.step()

    def state_dict(self) -> dict:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self.param_groups = self.muon.param_groups + self.adamw.param_groups


class Rows(torch.utils.data.Dataset):
    """Blocks of tokens as the trainer wants them: every token is both input and label."""

    def __init__(self, blocks: torch.Tensor):
        self.blocks = blocks

    def select(self, places: list[int]) -> "Rows":
        return Rows(self.blocks[places])

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.blocks[place], "labels": self.blocks[place]}


class Trainer(Looks, transformers.Trainer):
    """transformers' trainer, whose looks give the mean loss of a token."""


def prepare(config: PretrainConfig):
    """(model, tokenizer, train documents, held-out documents): all that `train` needs, before the first step.

    model="nano" starts from random weights and trains its own tokenizer; a folder or Hub id goes on pretraining.
    """
    documents, held_out = data.corpus(config.corpus)
    if config.model == "smoke":
        documents, held_out = documents.select(range(500)), held_out.select(range(50))
    if config.model not in ("nano", "smoke"):
        model, tokenizer = models.load(config.model)
        if config.block_size > (most := models.context(model)):
            remedy = f"Write {most} or less."
            raise ConfigError(
                f"block_size must not pass the model's {most} tokens", got=config.block_size, remedy=remedy
            )
        return model, tokenizer, documents, held_out
    tokenizer = models.train_tokenizer(documents["text"], config.vocab_size)
    size = {"hidden_size": config.hidden_size, "layers": config.layers, "heads": config.heads}
    if config.model == "smoke":
        size = {"hidden_size": 64, "layers": 2, "heads": 2}
    return models.new_model(tokenizer, **size, seed=config.seed), tokenizer, documents, held_out


def train(
    config: PretrainConfig,
    *,
    say: Callable = print,
    stop: threading.Event | None = None,
    at_look: Callable | None = None,
) -> runs.Run:
    """Pretrain and return the run; an identical one that has finished is returned as it is.

    at_look(run, model, tokenizer) is called at every look at held-out data. Raises DataError before training starts,
    TrainingError where the loss diverges.
    """
    data_hash = data.file_hash(config.corpus, "corpus")
    run = runs.open_run("pretrain", config, data_hash=data_hash, fresh=config.retrain)
    if run.status == "finished":
        say(f"{run.id} has already run: loaded")
        return run
    transformers.set_seed(config.seed)
    model, tokenizer, documents, held_out = prepare(config)
    if "row" in documents.column_names:  # a file of one's own
        say(data.summary(documents, held_out))
    rows = data.blocks(tokenizer, documents, config.block_size)
    unseen = data.blocks(tokenizer, held_out, config.block_size)[:256]
    bytes_per_token = len(tokenizer.decode(unseen.flatten(), skip_special_tokens=True).encode()) / unseen.numel()

    recorder = Recorder(run, say, stop, bytes_per_token)
    if at_look is not None:
        recorder.at_look.append(lambda model: at_look(run, model, tokenizer))
    # warm up, hold, then fall to zero over the last half: the fall is where most of the loss goes
    schedule = {"num_decay_steps": config.steps // 2, "decay_type": "linear", "min_lr_ratio": 0.02}
    args = transformers.TrainingArguments(
        **training.arguments(config, run), lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs=schedule
    )
    optimizer = None if config.optimizer == "adamw" else MuonWithAdamW(model, config.learning_rate)
    trainer = Trainer(
        model, training.on_one_device(args), train_dataset=Rows(rows), eval_dataset=Rows(unseen),
        callbacks=[recorder], optimizers=(optimizer, None),
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    training.put_in_order(trainer, config, [config.block_size] * len(rows))

    def keep() -> None:
        training.save(run, config, model, tokenizer)

    if training.fit(trainer, run, recorder, keep):
        tokens = config.steps * config.batch_size * config.block_size
        training.finish(run, model, keep, tokens=tokens, passes=tokens / rows.numel(), last_step=config.steps)
    return run
