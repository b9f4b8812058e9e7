"""A training that a test can kill: ``python resume_worker.py CHECKPOINT RESULT``.

It uses everything whose state a resume must bring back: shuffling, augmentation, dropout, batch
normalisation, momentum, weight decay and a one-cycle schedule.
"""

import sys
from pathlib import Path

import torch

from shipyard import data, metrics, models, training

EPOCHS, IMAGES, BATCH_SIZE, CHECKPOINT_EVERY = 2, 236, 4, 5  # 59 batches to an epoch


def train(checkpoint: Path | None) -> dict:
    """Train to the end, from ``checkpoint`` where it exists; returns weights and losses."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (IMAGES,), generator=generator)
    image_set = data.ImageSet(images, labels)
    loader = data.BatchLoader(
        image_set, BATCH_SIZE, shuffle=True, seed=2, transform=data.random_crop_flip()
    )
    model = models.SmallConvNet(width=4, dropout=0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, total_steps=EPOCHS * len(loader)
    )
    history = training.fit(
        model, loader, optimizer, epochs=EPOCHS, scheduler=scheduler, checkpoint=checkpoint,
        checkpoint_every=CHECKPOINT_EVERY, progress=False, clip_norm=5.0,
        evaluate=lambda model: metrics.evaluate(model, data.BatchLoader(image_set, 50)),
    )  # fmt: skip
    return {"weights": model.state_dict(), "losses": history.losses}


if __name__ == "__main__":
    torch.save(train(Path(sys.argv[1])), sys.argv[2])
