"""The Trainer of transformers with the shipped policy: one callback, nothing else.

    python examples/hugging_face.py      (needs pip install 'pacesetter[huggingface]')

A language model of two layers, made from a configuration, learns to count.
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from pacesetter.agent.adapters.huggingface import LearnedSchedulerCallback

WORDS, LENGTH = 20, 12

torch.manual_seed(0)
starts = torch.randint(WORDS, (640, 1))
steps = torch.randint(1, 4, (640, 1))
sentences = (starts + steps * torch.arange(LENGTH)) % WORDS  # 7 9 11 13 …
examples = [{"input_ids": row, "labels": row} for row in sentences]

model = GPT2LMHeadModel(
    GPT2Config(
        vocab_size=WORDS,
        n_positions=LENGTH,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=None,
        eos_token_id=None,
    )
)
callback = LearnedSchedulerCallback()
trainer = Trainer(
    model,
    TrainingArguments(
        output_dir="runs/hugging_face",
        max_steps=120,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,  # the start that the schedule is relative to
        eval_strategy="steps",
        eval_steps=30,
        save_steps=60,  # checkpoints hold the scheduler: train(resume_from_checkpoint=True)
        logging_steps=30,
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to=[],
    ),
    train_dataset=examples[:512],
    eval_dataset=examples[512:],
    callbacks=[callback],
)
trainer.train()

callback.scheduler.history.to_csv("runs/hugging_face/decisions.csv")
print("every decision is in runs/hugging_face/decisions.csv")
