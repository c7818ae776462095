"""The options and variables of the original's commands, and what each is here; the flags of its programs are in `flags`.

`request` reads them, --help prints them, and a test compares docs/original.md with them. A `key` is a knob of ours, or one of
PLANNED, of which `habana` and `hyper` make words; an option without a key is ignored.
"""

from __future__ import annotations

from resnet.compat.flags import FLAGS, PER_CARD
from resnet.compat.option import Option, ignored

# Those of the optimizer and its schedule.
HYPER = {
    *("use_cosine_lr", "lr_schedule", "base_learning_rate", "start_learning_rate", "end_learning_rate", "lars_epsilon"),
    *("epochs_for_lars", "lars_decay_epochs", "warmup_epochs", "disable_warmup", "fine_tune", "weight_decay"),
    *("single_l2_loss_op", "optimizer"),
}
PLANNED = HYPER | {
    *(
        "print",
        "model",
        "config",
        "dtype",
        "conversion",
        "converts",
        "size",
        "type",
        "lars",
        "card_batch",
        "shards",
        "synthetic",
    ),
    *("workers", "per_host", "hosts", "interface", "gpus", "strategy", "no_hpu", "recover", "export", "eval_only"),
    *("hooks", "profile_steps", "train_offset"),
}

PRINT = Option("--print", "print", "only print the line, start nothing")
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
    Option("--epochs-between-evals", "eval_every_epochs", "eval_every_epochs=; default 1", "number"),
    Option("--stop_threshold", "stop_at_top1", "stop_at_top1=", "number"),
)
RESNEXT = Option(
    "--resnext",
    "type",
    "model=resnext101 (or -rs), with its published schedule, momentum and decay; mixup=0.2 for 250 epochs",
    fixed="resnext",
)
ESTIMATOR = (
    Option("-rs --resnet-size", "size", "model=resnet50, ...; 50, or 101 with --resnext", "size"),
    *BOTH,
    Option("-l --eval-steps", "eval_steps", "eval_steps=", "limit"),
    Option(
        "-c --checkpoint-steps",
        "save_every_steps",
        "save_every_steps=; default: after every epoch; 0 with -n: only the last step is saved",
        "count",
    ),
    ignored("--use-train-and-evaluate", "one loop trains and evaluates", ""),
    ignored("--dummy_epoch", "compiling counts in the time", ""),
    Option("--enable-lars-optimizer", "lars", "optim=lars, optim.lr=2.5, or 9.5 with -o; schedule.horizon_epochs=38"),
    RESNEXT,
)
KERAS = (
    *BOTH,
    Option(
        "-l --steps-per-loop", "steps_per_loop", "steps_per_loop=; calls end at evaluations and checkpoints", "whole"
    ),
    Option("-c --enable-checkpoint", "export", "resnet.export after the training; checkpoints are always saved"),
    Option("-t --enable-tensorboard", "track.tensorboard", "track.tensorboard=true"),
    Option("--use_hpu_strategy", "strategy", "as -o, and batch= is -b, of all together", fixed="hpu"),
)
HOSTS = Option("MULTI_HLS_IPS", "hosts", "cluster.hosts=, as many ranks on each; on Gaudi ssh uses port 3022", "hosts")
HVD_ENVIRONMENT = (
    Option("IMAGENET_DIR", "shards", "as -a of demo_resnet; required", "folder"),
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
    HOSTS,
    Option(
        "MPI_MAP_BY_PE", "cluster.threads", "cluster.threads=; mpirun binds each rank to its share of the cores", "auto"
    ),
    ignored("MPI_MAP_BY", "mpirun maps the ranks by socket", "binding"),
    Option("MPI_TPC_INCLUDE MPI_TCP_INCLUDE", "interface", "mpirun's and HCCL's network interface", "text"),
    Option(
        "USE_MLPERF",
        "mlperf",
        "mlperf=true with LARS, evaluated after 6, 10, ... 38 epochs, and STOP_THRESHOLD",
        "if true",
    ),
    Option("STOP_THRESHOLD", "stop_at_top1", "stop_at_top1=; default 0.759 with USE_MLPERF, otherwise none", "number"),
)
RUNNER = (
    Option("--model", "model", "resnet_estimator or resnet_keras, as in the file", "model"),
    Option("--hb_config", "config", "the YAML file: model, env_variables, parameters; ~ and $VAR in its path", "text"),
)
COMPILER = "a setting of Habana's compiler of release 0.13"
RUNNER_ENVIRONMENT = (
    Option("TF_ENABLE_BF16_CONVERSION", "dtype", "1: dtype=bf16; 0 or not given: dtype=fp32", "if true", fixed="bf16"),
    Option("TF_BF16_CONVERSION", "converts", "as bf16_config_path, with any dtype", "text"),
    ignored("USE_LARS_OPTIMIZER", "enable_lars or optimizer decides"),
    ignored("TF_PRELIMINARY_CLUSTER_SIZE", COMPILER),
    ignored("TF_PRELIMINARY_CLUSTER_SIZE_THRESHOLD", COMPILER),
    ignored("HBN_TF_REGISTER_DATASETOPS", "cluster.prefetch needs no extension"),
    ignored("HCL_CONFIG_PATH", "the cards do not need it"),
    HOSTS,
)
# command -> the first line of its --help, and what it reads: where from -> options
COMMANDS: dict[str, tuple[str, dict[str, tuple[Option, ...]]]] = {
    "demo_resnet": ("one card, or with -o all cards of this machine", {"options": (*ESTIMATOR, PRINT)}),
    "demo_keras_resnet": (
        "ResNet-50 with the Keras program's settings: lr 0.1 per 256 images, warm-up 5, no smoothing",
        {"options": (*KERAS, PRINT)},
    ),
    "demo_resnet_hvd.sh": (
        "bf16 on all cards of one machine or of several",
        {"options": (RESNEXT, PRINT), "environment": HVD_ENVIRONMENT},
    ),
    "habana_model_runner.py": (
        "one run, described by a YAML file",
        {
            "options": (*RUNNER, PRINT),
            "environment": (HOSTS,),
            "parameters": FLAGS,
            "env_variables": RUNNER_ENVIRONMENT,
        },
    ),
    "resnet_ctl_imagenet_main.py": (
        "ResNet-50, by the flags of the original's Keras program",
        {"options": (PRINT,), "flags": FLAGS, "environment": (HOSTS,)},
    ),
    "imagenet_main.py": (
        "ResNeXt-101, by the flags of the original's Estimator program; --model_type resnet: ResNet",
        {"options": (PRINT,), "flags": FLAGS, "environment": (HOSTS,)},
    ),
}
