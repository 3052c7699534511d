"""Train on several GPUs: CONFIG GPUS [arguments of train].

Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT from the environment.
"""

from _dist_run import start

if __name__ == '__main__':
    start('train.py', 1, 'dist_train: CONFIG GPUS [arguments of train]')
