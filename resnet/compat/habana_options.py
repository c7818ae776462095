"""The options, variables and keys of the original's four commands, and what each is here.

`request` reads them, --help prints them, and a test compares docs/original.md with them. A `key` is a knob of ours, or one of
PLANNED, of which `habana` makes words; an option without a key is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass

# kind -> (what a value must match, the same in words, what stands for it in --help)
KINDS = {
    "": ("", "without a value", ""),
    "dtype": (r"bf16|fp32", "bf16 or fp32", "bf16|fp32"),
    "size": (r"18|34|50|101|152|200", "18, 34, 50, 101, 152 or 200", "SIZE"),
    "whole": (r"[1-9]\d*", "a whole number above 0", "N"),
    "count": (r"\d+", "a whole number", "N"),
    "limit": (r"-1|[1-9]\d*", "a whole number above 0, or -1 for no limit", "N"),
    "number": (r"(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", "a number", "X"),
    "truth": (r"(?i)0|1|true|false", "0 or 1, false or true", "0|1"),
    "if true": (r"(?i)0|1|true|false", "0 or 1, false or true", "0|1"),
    "hosts": (r"[\w.-]+(,[\w.-]+)*", "names or addresses with commas between them", "A,B"),
    "model": (r"resnet_estimator|resnet_keras", "resnet_estimator or resnet_keras", "MODEL"),
    "version": (r"1", "1: every network here is v1.5, as the original's version 1 was", "1"),
    "folder": (r"(?s).*\S.*", "a folder", "DIR"),
    "text": (r"(?s).+", "given", "VALUE"),
}
PLANNED = {
    *("print", "model", "config", "dtype", "size", "resnext", "lars", "card_batch", "shards"),
    *("workers", "hosts", "interface", "gpus", "recover", "export", "eval_only"),
}


@dataclass(frozen=True)
class Option:
    """An option, variable or key. One without a kind sets its knob to `fixed`; one of kind `if true` does if it is true."""

    names: str  # as they are typed, spaces between them
    key: str
    help: str  # for --help and docs/original.md
    kind: str = ""
    fixed: str = "true"


def ignored(names: str, reason: str, kind: str = "text") -> Option:
    return Option(names, "", f"ignored: {reason}", kind)


PRINT = Option("--print", "print", "only print the line, start nothing")
PER_CARD = "per card; batch= is this times the number of ranks"
BOTH = (
    Option("-d --dtype", "dtype", "dtype=; required", "dtype"),
    Option("-b --batch-size", "card_batch", f"{PER_CARD}; default 256 for bf16, 128 for fp32", "whole"),
    Option("-e --epochs", "epochs", "epochs=; default 1", "number"),
    Option(
        "-a --data-dir",
        "shards",
        "data=imagenet data.dir=, or data=folder if its classes.txt has other than 1000 classes",
        "folder",
    ),
    Option("-m --model-dir", "out", "out=; nothing is deleted: a run in this folder is resumed", "folder"),
    Option("-o --use-horovod", "workers", "cluster=hls1 on all Gaudi cards here, or cluster=cpu2", fixed="all"),
    Option("-s --steps", "steps", "steps=; total over all starts", "limit"),
    Option("-n --no-eval", "eval", "eval=false", fixed="false"),
    Option("-v --display-steps", "log_every_steps", "log_every_steps=", "whole"),
    Option("-r --recover", "recover", "cluster.max_restarts=10; needs -s, as in the original"),
    Option("-k --no-experimental-preloading", "cluster.prefetch", "cluster.prefetch=false", fixed="false"),
)
RESNEXT = Option("--resnext", "resnext", "model=resnext101 (or -rs), with its published schedule, momentum and decay")
ESTIMATOR = (
    Option("-rs --resnet-size", "size", "model=resnet50, ...; 50, or 101 with --resnext", "size"),
    *BOTH,
    Option("-l --eval-steps", "eval_steps", "eval_steps=", "limit"),
    Option("-c --checkpoint-steps", "save_every_steps", "save_every_steps=; default: after every epoch", "whole"),
    ignored("--use-train-and-evaluate", "one loop trains and evaluates", ""),
    Option("--epochs-between-evals", "eval_every_epochs", "eval_every_epochs=; default 1", "number"),
    Option("--enable-lars-optimizer", "lars", "optim=lars"),
    Option("--stop_threshold", "stop_at_top1", "stop_at_top1=", "number"),
    RESNEXT,
)
KERAS = (
    *BOTH,
    Option(
        "-l --steps-per-loop", "steps_per_loop", "steps_per_loop=; calls end at evaluations and checkpoints", "whole"
    ),
    Option("-c --enable-checkpoint", "export", "resnet.export after the training; checkpoints are always saved"),
)
HVD_ENVIRONMENT = (
    Option("IMAGENET_DIR", "shards", "as -a of demo_resnet", "folder"),
    Option("RESNET_SIZE", "size", "model=; 50, or 101 with --resnext", "size"),
    Option("USE_LARS_OPTIMIZER", "lars", "1: optim=lars, 0: optim=sgd; default 1, with --resnext 0", "truth"),
    Option("BATCH_SIZE", "card_batch", f"{PER_CARD}; default 256", "whole"),
    Option("TRAIN_EPOCHS", "epochs", "epochs=; default as published: 38 for LARS, otherwise 90", "number"),
    Option("TRAIN_STEPS", "steps", "steps=", "limit"),
    Option("NO_EVAL", "eval", "eval=false", "if true", fixed="false"),
    Option(
        "NUM_WORKERS_PER_HLS", "workers", "cluster.ranks=; default: all Gaudi cards here, or 2 ranks on a CPU", "whole"
    ),
    ignored("HLS_TYPE", "the cards need no file with their type"),
    Option("MULTI_HLS_IPS", "hosts", "cluster.hosts=, as many ranks on each; on Gaudi ssh uses port 3022", "hosts"),
    Option("MPI_TPC_INCLUDE MPI_TCP_INCLUDE", "interface", "mpirun's and HCCL's network interface", "text"),
    Option("USE_MLPERF", "mlperf", "mlperf=true eval_every_epochs=4, with LARS and STOP_THRESHOLD", "if true"),
    Option("STOP_THRESHOLD", "stop_at_top1", "stop_at_top1=; default 0.759 with USE_MLPERF, otherwise none", "number"),
)
RUNNER = (
    Option("--model", "model", "resnet_estimator or resnet_keras, as in the file", "model"),
    Option("--hb_config", "config", "the YAML file: model, env_variables, parameters", "text"),
)
PARAMETERS = (
    Option("batch_size", "card_batch", PER_CARD, "whole"),
    ignored("clean", "nothing is deleted; for a new run use another model_dir", "truth"),
    Option("data_dir", "shards", "as -a of demo_resnet", "folder"),
    ignored("data_format", "the program chooses the layout of images"),
    ignored("data_loader_image_type", "images are uint8 until they are on the device"),
    Option("disable_warmup", "schedule.warmup_epochs", "schedule.warmup_epochs=0", "if true", fixed="0"),
    Option("display_steps log_steps", "log_every_steps", "log_every_steps=", "whole"),
    ignored("distribution_strategy", "use_horovod or num_gpus sets the number of ranks"),
    Option("enable_checkpoint_and_export", "export", "as -c of demo_keras_resnet", "if true"),
    Option("enable_lars", "lars", "optim=lars", "if true"),
    Option("epochs_between_evals", "eval_every_epochs", "eval_every_epochs=", "number"),
    Option("eval_only", "eval_only", "resnet.evaluate of model_dir, no training", "if true"),
    Option("experimental_preloading", "cluster.prefetch", "cluster.prefetch=", "truth"),
    Option("export_dir", "export", "resnet.export there after the training; True: exported/ in model_dir", "text"),
    Option("fine_tune", "finetune.freeze", "finetune.freeze=head", "if true", fixed="head"),
    ignored("hooks", "every metric is logged, see track="),
    ignored("image_bytes_as_serving_input", "an export accepts pixels and JPEG bytes", "truth"),
    Option("label_smoothing", "label_smoothing", "label_smoothing=", "number"),
    ignored("mini_imagenet", "data_dir selects the images", "truth"),
    Option("model_dir", "out", "out=", "folder"),
    Option("num_gpus", "gpus", "cluster=gpu1, or gpu8 with this number of ranks; 0: no GPU", "count"),
    Option("pretrained_model_checkpoint_path", "init", "init=", "text"),
    Option("resnet_size", "size", "model=resnet50, ...", "size"),
    ignored("resnet_version", "1 is v1.5, which every network here is", "version"),
    Option("return_before_eval skip_eval", "eval", "eval=false", "if true", fixed="false"),
    Option("save_checkpoint_steps", "save_every_steps", "save_every_steps=", "whole"),
    Option("steps_per_loop", "steps_per_loop", "steps_per_loop=", "whole"),
    Option("train_epochs", "epochs", "epochs=; default 1", "number"),
    Option("train_steps", "steps", "steps=", "limit"),
    Option("use_horovod", "workers", "as -o of demo_resnet", "if true", fixed="all"),
    ignored("use_train_and_evaluate", "one loop trains and evaluates", "truth"),
    Option("weight_decay", "optim.weight_decay", "optim.weight_decay=", "number"),
)
COMPILER = "a setting of Habana's compiler of release 0.13"
RUNNER_ENVIRONMENT = (
    Option("TF_ENABLE_BF16_CONVERSION", "dtype", "1: dtype=bf16; 0 or not given: dtype=fp32", "if true", fixed="bf16"),
    ignored("TF_PRELIMINARY_CLUSTER_SIZE", COMPILER),
    ignored("TF_PRELIMINARY_CLUSTER_SIZE_THRESHOLD", COMPILER),
    ignored("HBN_TF_REGISTER_DATASETOPS", "cluster.prefetch needs no extension"),
    ignored("HCL_CONFIG_PATH", "the cards do not need it"),
)
# command -> the first line of its --help, and what it reads: where from -> options
COMMANDS: dict[str, tuple[str, dict[str, tuple[Option, ...]]]] = {
    "demo_resnet": ("one card, or with -o all cards of this machine", {"options": (*ESTIMATOR, PRINT)}),
    "demo_keras_resnet": ("ResNet-50, as demo_resnet trains it: both use the same loop", {"options": (*KERAS, PRINT)}),
    "demo_resnet_hvd.sh": (
        "bf16 on all cards of one machine or of several",
        {"options": (RESNEXT, PRINT), "environment": HVD_ENVIRONMENT},
    ),
    "habana_model_runner.py": (
        "one run, described by a YAML file",
        {"options": (*RUNNER, PRINT), "parameters": PARAMETERS, "env_variables": RUNNER_ENVIRONMENT},
    ),
}


def by_name(options: tuple[Option, ...]) -> dict[str, Option]:
    return {name: option for option in options for name in option.names.split()}
