"""timm's ViT S/32 from a folder of JPEG files to its first training step.

python -m benchmarks.rivals.start_timm FOLDER BATCH_SIZE IMAGE_PX [compile]
"""

import sys

import torch

# The registry's torchvision is built for PyTorch with CUDA; beside PyTorch for CPUs its
# import fails, unless the operators that it describes are declared.
_library = torch.library.Library("torchvision", "FRAGMENT")
for _operator in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _operator):
        _library.define(f"{_operator}(Tensor d, Tensor s, float t) -> Tensor")

import timm  # noqa: E402
from timm import data  # noqa: E402


def main(folder: str, batch_size: int, image_px: int, is_compiled: bool) -> None:
    """Trains one step."""
    images = data.ImageDataset(
        folder, transform=data.create_transform(image_px, is_training=True)
    )
    loader = torch.utils.data.DataLoader(images, batch_size, shuffle=True)
    model = timm.create_model(
        "vit_small_patch32_224", img_size=image_px, num_classes=4, global_pool="avg"
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    run = torch.compile(model) if is_compiled else model
    for pixels, labels in loader:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(run(pixels), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        print("step 1, loss", loss.item(), flush=True)
        break


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), "compile" in sys.argv)
