"""Files as MNIST, Fashion-MNIST and CIFAR-10 have them, with few images that can be learned."""

import gzip

import numpy as np

IDX_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
CIFAR_NAMES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")


def idx_bytes(array):
    """An IDX file, written from its description: 0, 0, type, dimensions, sizes, data."""
    head = bytes([0, 0, 8, array.ndim])
    return head + b"".join(int(n).to_bytes(4, "big") for n in array.shape) + array.tobytes()


def random_images(rng, rows, size):
    """Labels and images whose bright part is the larger the higher the label: to be learned."""
    labels = rng.permutation(np.arange(rows) % 10).astype(np.uint8)
    images = rng.integers(0, 100, (rows, *size), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[..., : 2 * label + 2, :] += 120
    return images, labels


def write_mnist(folder, *, train=60, test=20, seed=0, spell=lambda name: name):
    """Writes the four files; returns their arrays."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = [*random_images(rng, train, (28, 28)), *random_images(rng, test, (28, 28))]
    for name, array in zip(IDX_NAMES, arrays, strict=True):
        spelt = spell(name)
        raw = idx_bytes(array)
        (folder / spelt).write_bytes(gzip.compress(raw) if spelt.endswith(".gz") else raw)
    return arrays


def write_cifar(folder, *, rows=12, seed=0):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for name in CIFAR_NAMES:
        images, labels = random_images(rng, rows, (3, 32, 32))
        table = np.concatenate([labels[:, None], images.reshape(rows, -1)], axis=1)
        (folder / name).write_bytes(table.astype(np.uint8).tobytes())
        parts.append((images, labels))
    return parts


def write_all(folder):
    """All three data sets."""
    write_mnist(folder / "mnist", seed=1)
    write_mnist(folder / "fashion-mnist", seed=2)
    write_cifar(folder / "cifar-10-batches-bin")
