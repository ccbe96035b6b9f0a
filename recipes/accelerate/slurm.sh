#!/bin/bash
# sbatch recipes/accelerate/slurm.sh --config recipes/electra_base/pretrain.yaml --corpus_files 'text/*.txt'
# One launcher a machine, one process a GPU. Before the time is over Slurm sends SIGTERM: the run ends in a complete
# checkpoint, and the same sbatch goes on from it.
#SBATCH --job-name=electra
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
set -euo pipefail

machines=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${machines%%$'\n'*} MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
# The CPU group of the run meets on the network card that the machine's own name leads to. If that is the wrong one:
# export GLOO_SOCKET_IFNAME=ib0 NCCL_SOCKET_IFNAME=ib0

# shellcheck disable=SC2016  # each machine reads its own number
srun --kill-on-bad-exit=1 bash -c '
    exec torchrun --nnodes "$SLURM_NNODES" --node_rank "$SLURM_NODEID" --nproc_per_node "${SLURM_GPUS_ON_NODE:-1}" \
        --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" recipes/pretrain.py "$@"' bash "$@"
