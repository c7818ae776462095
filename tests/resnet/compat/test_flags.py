"""Every flag of the original's two programs: all names are known, and each becomes a knob, a note or a refusal."""

import pytest

from resnet import UserError
from resnet.compat.flags import FLAGS
from resnet.compat.option import by_name

# The flags that imagenet_main.py and resnet_ctl_imagenet_main.py define in releases 0.13, 0.14, 0.15, 1.0 to 1.14, and MLPerf
# Training 3.1: facts, read from the original's repository.
NAMES = """
all_reduce_alg base_learning_rate batch_size batchnorm_spatial_persistent benchmark_log_dir benchmark_logger_type
benchmark_test_id bf16_config_path bigquery_data_set bigquery_metric_table bigquery_run_status_table bigquery_run_table
cache_decoded_image clean data_dir data_format data_loader_image_type dataset_cache dataset_parallel_calls
datasets_num_parallel_batches datasets_num_private_threads device_warmup_steps disable_checkpoints disable_eval
disable_warmup display_steps dist_eval distribution_strategy dtype dummy_epoch dump_config enable_checkpoint_and_export
enable_device_warmup enable_eager enable_get_next_as_optional enable_lars enable_scoped_allocator enable_tensorboard
enable_xla end_learning_rate epochs_between_evals epochs_for_lars eval_offset_epochs eval_only experimental_preloading
explicit_gpu_placement export_dir fine_tune force_v2_in_keras_compile fp16_implementation gcp_project global_seed hooks
horovod_hierarchical_allreduce image_bytes_as_serving_input initial_learning_rate_per_sample inter_op_parallelism_threads
intra_op_parallelism_threads is_mlperf_enabled jpeg_data_dir keras_applications_model label_smoothing lars_decay_epochs
lars_epsilon log_steps loss_scale lr_decay_factor lr_schedule max_cpus max_eval_steps max_train_steps mini_imagenet model
model_dir model_type modeling momentum no_hpu num_acc_steps num_epochs_per_decay num_eval_files num_gpus num_packs
num_parallel_calls num_tpu_shards num_train_files optimizer per_gpu_thread_count pretrained_filepath
pretrained_model_checkpoint_path profile profile_steps pruning_begin_step pruning_end_step pruning_final_sparsity
pruning_frequency pruning_initial_sparsity pruning_method report_accuracy_metrics resnet_size resnet_version
return_before_eval run_eagerly save_checkpoint_steps save_full_model save_summary_steps set_learning_phase_to_train
single_l2_loss_op skip_eval start_learning_rate steps_per_loop stop_threshold target_accuracy task_index
tf_data_experimental_slack tf_gpu_thread_mode tpu tpu_gcp_project tpu_zone train_epochs train_offset train_steps
training_dataset_cache use_cosine_lr use_distributed_eval use_horovod use_keras_mixed_precision
use_native_keras_mixed_precision_policy use_synthetic_data use_tensor_lr use_tf_function use_tf_while_loop
use_train_and_evaluate use_trivial_model warmup_epochs weight_decay worker_hosts
"""
DATA = "model=resnet50 data=imagenet data.dir=/d data.eval_resample=original dtype=bf16 cluster=gaudi1 "
BASES = {
    # two programs, what is typed to all, and what becomes of it
    "imagenet_main.py": (
        "--model_type resnet -dt bf16 --data_dir /d -bs 256",
        f"{DATA} optim=sgd batch=256 epochs=10 label_smoothing=0",
    ),
    "resnet_ctl_imagenet_main.py": (
        "-dt bf16 --data_dir /d -bs 256",
        f"{DATA} optim=sgd batch=256 epochs=1 label_smoothing=0 optim.lr=${{linear_lr:0.1}} optim.weight_decay=0.0002 "
        "schedule.warmup_epochs=5",
    ),
}
# What is typed -> the words that are then there or differ; -word is gone.
BOTH = """
-bs 64 -> batch=64
-dd /other -> data.dir=/other
-md /my/model -> out=/my/model
-te 3 -> epochs=3
-ebe 4 -> eval_every_epochs=4
-mts 100 -> steps=100
--train_steps=100 -> steps=100
--max_train_steps -1 ->
-mes 5 -> eval_steps=5
--skip_eval -> eval=false
--disable_eval=true -> eval=false
--disable_eval=False ->
--return_before_eval -> eval=false
--steps_per_loop 50 -> steps_per_loop=50
--eval_offset_epochs 3 -> eval_offset_epochs=3
--stop_threshold .759 -> stop_at_top1=.759
--target_accuracy 0.7 -> stop_at_top1=0.7
--global_seed 7 -> seed=7
--save_checkpoint_steps 5005 -> save_every_steps=5005
--save_checkpoint_steps 0 --skip_eval -> eval=false save_every_steps=2147483647
--disable_checkpoints -> save_every_steps=2147483647
--noenable_checkpoint_and_export ->
--display_steps 9 -> log_every_steps=9
--log_steps=9 -> log_every_steps=9
--enable_tensorboard -> track.tensorboard=true
--hooks LoggingTensorHook ->
--hooks LoggingTensorHook,ProfilerHook -> profile_steps=[7,10]
--profile_steps 5,8 -> profile_steps=[5,8]
--use_horovod -> cluster=hls1 batch=2048
--nouse_horovod ->
--hvd --num_workers_per_hls 4 -> cluster=hls1 cluster.ranks=4 batch=1024
--num_workers_per_hls 4 ->
--num_gpus 1 --distribution_strategy off ->
--num_gpus 2 -> cluster=gpu8 cluster.ranks=2
--distribution_strategy hpu -bs 2048 -> cluster=hls1 batch=2048
--no_hpu -> cluster=local
--enable_xla -> dtype.jit=true
--intra_op_parallelism_threads 3 -> cluster.threads=3
--intra 0 ->
--use_synthetic_data -> data=synthetic -data.dir -data.eval_resample
--training_dataset_cache -> data.cache=encoded
--dataset_cache=true -> data.cache=encoded
--cache_decoded_image -> data.cache=decoded
--noexperimental_preloading -> cluster.prefetch=false
--momentum 0.8 -> optim.momentum=0.8
--label_smoothing 0.1 -> label_smoothing=0.1
--num_acc_steps 2 -> cluster.gradient_accumulation=2 batch=512
-dt fp16 -> dtype=fp16
-dt fp32 --bf16_config_path /c.json -> dtype=fp32
--bf16_config_path /c.json -> dtype=fp32 dtype.gaudi_conversion=/c.json
--resnet_size 101 -> model=resnet101
--pretrained_model_checkpoint_path /w.npz -> init=/w.npz
--pretrained_filepath /w.safetensors -> init=/w.safetensors
"""
ROWS = {
    "imagenet_main.py": f"""{BOTH}
--is_mlperf_enabled --train_offset 2 -ebe 4 -> mlperf=true eval_every_epochs=4 eval_offset_epochs=6 epochs=12
--train_offset 0 ->
--enable_lars -> optim=lars optim.lr=9.5 schedule.horizon_epochs=38
--enable_lars --start_learning_rate 2.5 --epochs_for_lars 40 -te 40 -> optim=lars epochs=40
--enable_lars --hvd --warmup_epochs 2 -te 38 -> optim=lars cluster=hls1 batch=2048 epochs=38 schedule.warmup_epochs=2
--fine_tune -> finetune.freeze=head optim.lr=${{linear_lr:0.1}} schedule.warmup_epochs=0
--disable_warmup -> optim.lr=${{linear_lr:0.1}} schedule.warmup_epochs=0
--use_cosine_lr --warmup_epochs 8 -> schedule=cosine optim.lr=${{linear_lr:0.256}}
--weight_decay 5e-5 -> optim.weight_decay=5e-5
--weight_decay 0.0001 ->
--warmup_epochs 5 -> schedule.warmup_epochs=5
--start_learning_rate 9.5 ->""",
    "resnet_ctl_imagenet_main.py": f"""{BOTH}
--single_l2_loss_op -> -optim.weight_decay
--weight_decay 5e-5 -> -optim.weight_decay
--optimizer SGD --lr_schedule piecewise ->
--base_learning_rate 9.5 ->
--lr_schedule constant --base_learning_rate 0.2 -> schedule=constant optim.lr=${{linear_lr:0.2}} -schedule.warmup_epochs
--lr_schedule polynomial --warmup_epochs 3 -te 40 --end_learning_rate 1e-3 --lars_decay_epochs 41 -> schedule=polynomial \
optim.lr=0.1 epochs=40 schedule.end_lr=1e-3 schedule.horizon_epochs=41 -schedule.warmup_epochs
--optimizer LARS --lr_schedule polynomial --base_learning_rate 9 --warmup_epochs 2 --lars_epsilon 1e-9 -te 40 \
-> optim=lars optim.lr=9 epochs=40 schedule.warmup_epochs=2 optim.epsilon=1e-9 -optim.weight_decay
--lr_schedule polynomial -te 4 -> schedule=polynomial optim.lr=0.1 epochs=4 schedule.horizon_epochs=90
--lr_schedule polynomial --warmup_epochs 3 -te 9 --lars_decay_epochs 8 -> schedule=polynomial optim.lr=0.1 epochs=9 \
schedule.horizon_epochs=null -schedule.warmup_epochs
--optimizer LARS -te 9 -> optim=lars schedule=piecewise epochs=9 -optim.weight_decay""",
}


def test_every_flag_of_every_release_is_known():
    known = by_name(FLAGS)
    assert set(NAMES.split()) <= set(known)
    assert len(known) == sum(len(flag.names.split()) for flag in FLAGS)  # no name twice


@pytest.mark.parametrize("command", ROWS)
def test_flags_become_these_words(asked, command, run_at, tmp_path):
    typed, said = BASES[command]
    base, composed = dict(word.split("=", 1) for word in said.split()), set()
    for row in filter(None, ROWS[command].split("\n")):
        flags, _, change = row.partition(" ->")
        expected = dict(base)
        for word in change.split():
            name, _, value = word.partition("=")
            expected |= {name: value} if word[0] != "-" else {}
            expected.pop(word[1:], None)
        _, (train,) = asked(command, *typed.split(), *flags.split())
        got = dict(word.split("=", 1) for word in train[1:])
        assert got == expected, flags
        if {"optim", "schedule"} & set(got) - {"optim"} and "init" not in got:
            composed.add(" ".join(train[1:]))
    for words in composed:
        run_at(tmp_path, *words.split())


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if not flag.key], ids=lambda flag: flag.names)
def test_what_means_nothing_here_is_reported_and_what_is_missing_is_refused(asked, flag):
    value = {"version": "1", "preset": "resnet50_v1.5", "scale": "dynamic"}.get(flag.kind, "true")
    for name in flag.names.split():
        argv = ["resnet_ctl_imagenet_main.py", "--data_dir", "/d", f"--{name}={value}"]
        if flag.kind.startswith("refused"):
            with pytest.raises(UserError, match=f"--{name}=true: not available: "):
                asked(*argv)
            assert asked(*argv[:-1], f"--{name}=False")[0].notes == []
        else:
            assert asked(*argv)[0].notes == [f"--{name}={value}: {flag.help}"]
