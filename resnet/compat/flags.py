"""Every flag of the original's two training programs, releases 0.13 to 1.14 and MLPerf Training 3.1, one row a flag.

imagenet_main.py and resnet_ctl_imagenet_main.py read them from the command line, habana_model_runner.py as keys of
`parameters`. A name of one to five letters is the flag's short form.
"""

from __future__ import annotations

from resnet.compat.option import Option, ignored, refused

PER_CARD = "per card; batch= is this times the number of ranks"
HOST = "tf.data and cluster.threads= share out the cores"
MOBILENET = "of mobilenet_default, which is not available"
MLFLOW = "MLflow has the metrics, see track="
PRUNING = "of pruning_method, which is not available"
GRAPH = "a step is always a compiled graph"
POLICY = "dtype= is Keras' policy, with dynamic loss scaling for fp16"
OPTIMIZER = (
    Option("optimizer", "optimizer", "optim=sgd or lars", "optimizer"),
    Option("enable_lars", "lars", "optim=lars", "if true"),
    Option("lr_schedule", "lr_schedule", "schedule=", "schedule"),
    Option("use_cosine_lr", "use_cosine_lr", "schedule=cosine, optim.lr= 0.256 per 256 images", "if true"),
    Option(
        "base_learning_rate",
        "base_learning_rate",
        "optim.lr=; per 256 images with lr_schedule constant; default 0.1; piecewise is always 0.1 per 256",
        "number",
    ),
    Option("start_learning_rate", "start_learning_rate", "optim.lr= with enable_lars; default 9.5", "number"),
    Option("end_learning_rate", "end_learning_rate", "schedule.end_lr= with lr_schedule polynomial", "number"),
    Option("epochs_for_lars", "epochs_for_lars", "schedule.horizon_epochs= with enable_lars; default 38", "number"),
    Option("lars_decay_epochs", "lars_decay_epochs", "schedule.horizon_epochs= with lr_schedule polynomial", "number"),
    Option("lars_epsilon", "lars_epsilon", "optim.epsilon= with optimizer LARS", "number"),
    Option("warmup_epochs", "warmup_epochs", "schedule.warmup_epochs=; piecewise of Keras is always 5", "number"),
    Option(
        "disable_warmup",
        "disable_warmup",
        "schedule.warmup_epochs=0, optim.lr= 0.1 per 256 images (with the cosine 0.256)",
        "if true",
    ),
    Option("momentum", "optim.momentum", "optim.momentum=; default 0.9, or with the cosine 0.875", "number"),
    Option("weight_decay", "weight_decay", "optim.weight_decay=; twice as much for SGD of Keras, as there", "number"),
    Option("single_l2_loss_op", "single_l2_loss_op", "the decay of SGD of Keras once, not twice", "if true"),
    Option("label_smoothing", "label_smoothing", "label_smoothing=; default 0, or with the cosine 0.1", "number"),
    Option("num_acc_steps", "cluster.gradient_accumulation", "cluster.gradient_accumulation=", "whole"),
    Option(
        "fine_tune ft",
        "fine_tune",
        "finetune.freeze=head, no warm-up, optim.lr= 0.1 per 256 images (with the cosine 0.256)",
        "if true",
    ),
    ignored("initial_learning_rate_per_sample", MOBILENET),
    ignored("lr_decay_factor", MOBILENET),
    ignored("num_epochs_per_decay", MOBILENET),
    refused("pruning_method", "leave it out; there is no pruning here"),
    ignored("pruning_initial_sparsity", PRUNING),
    ignored("pruning_final_sparsity", PRUNING),
    ignored("pruning_begin_step", PRUNING),
    ignored("pruning_end_step", PRUNING),
    ignored("pruning_frequency", PRUNING),
)
MODEL = (
    Option("model_type", "type", "model=resnet50, ... or resnext101, ...", "type"),
    Option("resnet_size rs", "size", "model=resnet50, ...", "size"),
    ignored("resnet_version rv", "1 is v1.5, which every network here is", "version"),
    ignored("model", "model= selects the network", "preset"),
    refused("keras_applications_model", "add -- model=resnet50, resnet101 or resnet152"),
    refused("use_trivial_model", "add -- model=tiny", "refused flag"),
    Option("pretrained_model_checkpoint_path pmcp", "init", "init=, but no checkpoint of TensorFlow 1", "weights"),
    Option("pretrained_filepath", "init", "init=, but no checkpoint of TensorFlow 1", "weights"),
    Option("dtype dt", "dtype", "dtype=; default fp32", "any dtype"),
    Option("bf16_config_path", "conversion", "dtype=fp32 dtype.gaudi_conversion= on Gaudi, with dtype bf16", "text"),
    ignored("use_keras_mixed_precision", POLICY, "truth"),
    ignored("use_native_keras_mixed_precision_policy", POLICY, "truth"),
    ignored("fp16_implementation", POLICY),
    ignored("loss_scale ls", POLICY, "scale"),
    ignored("data_format df", "the program chooses the layout of images"),
    ignored("set_learning_phase_to_train", "training and evaluation each run in their own mode", "truth"),
    ignored("batchnorm_spatial_persistent", "cuDNN's mode is TensorFlow's choice", "truth"),
)
DATA = (
    Option("data_dir dd", "shards", "as -a of demo_resnet", "folder"),
    refused("jpeg_data_dir jpdd", "prepare once, python -m resnet.prepare source=imagenet dir= out=, and use data_dir"),
    Option("use_synthetic_data synth", "synthetic", "data=synthetic", "if true"),
    ignored("mini_imagenet", "its two folders in data_dir are read like any others", "truth"),
    ignored("num_train_files", "any number of shards is read"),
    ignored("num_eval_files", "any number of shards is read"),
    Option("training_dataset_cache", "data.cache", "data.cache=encoded", "if true", fixed="encoded"),
    Option("dataset_cache", "data.cache", "data.cache=encoded", "if true", fixed="encoded"),
    Option("cache_decoded_image", "data.cache", "data.cache=decoded", "if true", fixed="decoded"),
    Option("experimental_preloading", "cluster.prefetch", "cluster.prefetch=", "truth"),
    ignored("data_loader_image_type dlit", "images are uint8 until they are on the device"),
    ignored("num_parallel_calls npc", HOST),
    ignored("dataset_parallel_calls", HOST),
    ignored("datasets_num_private_threads", HOST),
    ignored("datasets_num_parallel_batches", HOST),
    ignored("tf_data_experimental_slack", HOST, "truth"),
    ignored("enable_get_next_as_optional", "every step has a whole batch", "truth"),
)
LENGTH = (
    Option(
        "batch_size bs", "card_batch", f"{PER_CARD}; of all together with distribution_strategy; default 32", "whole"
    ),
    Option(
        "train_epochs te", "epochs", "epochs=; default 1, or 10 for resnet_estimator and imagenet_main.py", "number"
    ),
    Option("train_steps max_train_steps mts", "steps", "steps=", "limit"),
    Option("steps_per_loop", "steps_per_loop", "steps_per_loop=", "whole"),
    Option("epochs_between_evals ebe", "eval_every_epochs", "eval_every_epochs=", "number"),
    Option(
        "train_offset", "train_offset", "eval_offset_epochs= with is_mlperf_enabled, and so many more epochs=", "count"
    ),
    Option("eval_offset_epochs", "eval_offset_epochs", "eval_offset_epochs=", "number"),
    Option("max_eval_steps mes", "eval_steps", "eval_steps=", "limit"),
    Option("skip_eval disable_eval return_before_eval rbv", "eval", "eval=false", "if true", fixed="false"),
    Option("eval_only", "eval_only", "resnet.evaluate of model_dir, no training", "if true"),
    ignored("use_distributed_eval", "every rank evaluates its share, exactly", "truth"),
    ignored("dist_eval", "every rank evaluates its share, exactly", "truth"),
    Option("stop_threshold st", "stop_at_top1", "stop_at_top1=", "number"),
    Option("target_accuracy", "stop_at_top1", "stop_at_top1=", "number"),
    Option("is_mlperf_enabled mlperf_enable", "mlperf", "mlperf=true", "if true"),
    ignored("dummy_epoch", "compiling counts in the time", "truth"),
    ignored("enable_device_warmup", "compiling counts in the time", "truth"),
    ignored("device_warmup_steps", "compiling counts in the time"),
    Option("global_seed", "seed", "seed=", "count"),
    ignored("use_train_and_evaluate", "one loop trains and evaluates", "truth"),
)
OUTPUT = (
    Option("model_dir md", "out", "out=", "folder"),
    ignored("clean", "nothing is deleted; for a new run use another model_dir", "truth"),
    Option("save_checkpoint_steps cs", "save_every_steps", "save_every_steps=; 0 as -c of demo_resnet", "count"),
    Option("disable_checkpoints", "save_every_steps", "only the last step is saved", "if true", fixed="2147483647"),
    Option("enable_checkpoint_and_export", "export", "as -c of demo_keras_resnet", "if true"),
    Option("export_dir ed", "export", "resnet.export there after the training; True: exported/ in model_dir", "text"),
    ignored("image_bytes_as_serving_input", "an export accepts pixels and JPEG bytes", "truth"),
    refused("save_full_model", "enable_checkpoint_and_export writes a SavedModel and .safetensors", "refused flag"),
    Option("display_steps dis log_steps", "log_every_steps", "log_every_steps=", "whole"),
    ignored("save_summary_steps", "log_steps decides"),
    Option("enable_tensorboard", "track.tensorboard", "track.tensorboard=true", "if true"),
    Option("hooks hk", "hooks", "profilerhook: profile_steps=, others: ignored, every metric is logged", "text"),
    Option("profile_steps", "profile_steps", "profile_steps=", "pair"),
    refused("profile", "name the steps: profile_steps", "refused flag"),
    refused("dump_config", "leave it out; tensors are not dumped"),
    ignored("modeling", "profile_steps writes the graph too", "truth"),
    ignored("report_accuracy_metrics", "every metric is logged", "truth"),
    ignored("benchmark_logger_type", MLFLOW),
    ignored("benchmark_test_id bti", MLFLOW),
    ignored("benchmark_log_dir bld", MLFLOW),
    ignored("gcp_project gp", MLFLOW),
    ignored("bigquery_data_set bds", MLFLOW),
    ignored("bigquery_run_table brt", MLFLOW),
    ignored("bigquery_run_status_table brst", MLFLOW),
    ignored("bigquery_metric_table bmt", MLFLOW),
)
MACHINE = (
    Option("use_horovod hvd", "workers", "as -o of demo_resnet", "if true", fixed="all"),
    Option("num_workers_per_hls", "per_host", "the ranks of use_horovod on each machine", "whole"),
    ignored("hls_type", "the cards need no file with their type"),
    Option("num_gpus ng", "gpus", "above 1 without Horovod: cluster=gpu8 with this number of ranks", "count"),
    Option("distribution_strategy ds", "strategy", "hpu: as use_horovod; mirrored: num_gpus decides", "strategy"),
    Option("no_hpu", "no_hpu", "cluster=local or cpu2", "if true"),
    Option("enable_xla", "dtype.jit", "dtype.jit=true, on a GPU", "if true"),
    Option("intra_op_parallelism_threads intra", "cluster.threads", "cluster.threads=", "auto"),
    ignored("inter_op_parallelism_threads inter", HOST),
    ignored("max_cpus mc", HOST),
    refused("worker_hosts", "name the machines by MULTI_HLS_IPS, or add -- cluster.hosts=[a:8,b:8]"),
    ignored("task_index", "each rank knows its number"),
    ignored("all_reduce_alg ara", "Horovod adds up the gradients"),
    ignored("num_packs", "Horovod adds up the gradients"),
    ignored("enable_scoped_allocator", "Horovod joins small tensors", "truth"),
    refused("horovod_hierarchical_allreduce", "set the variable HOROVOD_HIERARCHICAL_ALLREDUCE=1", "refused flag"),
    refused("tpu", "there are Gaudi, GPU and CPU"),
    ignored("tpu_zone", "of tpu, which is not available"),
    ignored("tpu_gcp_project", "of tpu, which is not available"),
    ignored("num_tpu_shards", "of tpu, which is not available"),
    ignored("explicit_gpu_placement", "each rank has its device", "truth"),
    ignored("tf_gpu_thread_mode gt_mode", HOST),
    ignored("per_gpu_thread_count pgtc", HOST),
    ignored("enable_eager", GRAPH, "truth"),
    ignored("run_eagerly", GRAPH, "truth"),
    ignored("use_tf_function", GRAPH, "truth"),
    ignored("use_tf_while_loop", "steps_per_loop decides", "truth"),
    ignored("use_tensor_lr", GRAPH, "truth"),
    ignored("force_v2_in_keras_compile", GRAPH, "truth"),
)
FLAGS = (*MODEL, *DATA, *OPTIMIZER, *LENGTH, *OUTPUT, *MACHINE)
