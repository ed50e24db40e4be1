"""Package metadata. Installs llava_pat only; train/, eval/, scripts/ and playground/ are run from a clone.

pip install -e .            # ranges; scripts/setup.sh installs the tested versions instead
"""

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "llava_pat" / "__init__.py").read_text(), re.MULTILINE).group(1)
README = HERE / "README.md"

setup(
    name="llava-pat",
    version=VERSION,
    description="LLaVA-1.5 training with patch-level alignment objectives in stage 1",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_namespace_packages(include=["llava_pat", "llava_pat.*"]),
    package_data={
        "llava_pat.pages": ["page.css"],
        "llava_pat.annotation.report": ["page.css"],
        "llava_pat.evaluation.alignment.report": ["page.css", "explorer.js"],
    },
    install_requires=[
        "torch>=2.6",
        "transformers>=5.17,<6",
        "accelerate>=1.1",
        "numpy",
        "peft>=0.21",
        "pillow",
        "pycocotools",
        "protobuf",
        "pyyaml",
        "safetensors",
        "sentencepiece",
        "shortuuid",
        "tqdm",
    ],
    extras_require={
        "deepspeed": ["deepspeed>=0.19", "ninja"],
        "playground": ["scikit-learn", "scipy"],
        "wandb": ["wandb"],
        "tensorboard": ["tensorboard"],
        # an sdist: needs CUDA_HOME and a compiler; without it attention runs on sdpa
        "flash-attn": ["flash-attn"],
        "qlora": ["bitsandbytes>=0.50"],
        "liger": ["liger-kernel>=0.8"],  # Triton kernels: a GPU
        # torchvision 0.28.0 needs the CUDA build of torch 2.13.0, on a CPU as well: scripts/setup.sh --with open-clip
        "open-clip": ["torch==2.13.0", "torchvision==0.28.0", "open_clip_torch==3.3.0"],
        # the same pair for the same reason; decord is what lmms-eval's llava_hf imports without asking for it
        "lmms": ["torch==2.13.0", "torchvision==0.28.0", "lmms-eval==0.7.3", "decord"],
        "report": ["contourpy", "matplotlib"],
        "eval": ["pycocoevalcap", "openpyxl", "pyarrow"],
        # regions files as Parquet; OWLv2 resizes with scipy
        "annotation": ["pyarrow", "scipy"],
        "ray": ["ray[data]>=2.40"],
        "dev": [
            "hypothesis>=6.100", "matplotlib", "mistral-common", "pytest>=8", "ruff", "scikit-learn", "scipy",
            "tensorboard", "wandb",
        ],  # fmt: skip
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
