"""Evaluate on several GPUs: CONFIG CHECKPOINT GPUS [arguments of test].

Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT from the environment.
"""

from _dist_run import start

if __name__ == '__main__':
    start('test.py', 2, 'dist_test: CONFIG CHECKPOINT GPUS [arguments of test]')
